# SPDX-License-Identifier: Apache-2.0
"""Each pass of each operator runs on the npu: its kernels read and write the bytes that the pass needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch_npu  # noqa: F401
from shapes import DTYPES, logits, targets
from virtual_cann import observe

from npu_ce_jit import cross_entropy, npu_cross_entropy_loss, npu_cross_entropy_loss_backward


def launched(compute: Callable[[], Any], kernel: str, *, read: int, written: int = 0) -> Any:
    """The result of `compute`; asserts how many bytes of device memory its launches of this kernel read and wrote."""
    torch.npu.synchronize()
    observe.clear_reports()
    result = compute()
    torch.npu.synchronize()
    totals = [report["total"] for report in observe.reports() if report["kernel"].startswith(kernel)]
    assert sum(total["gm_bytes_read"] for total in totals) >= read
    assert sum(total["gm_bytes_written"] for total in totals) >= written
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(211, 10), (7, 3001)], ids=["narrow", "wide"])
def test_every_pass_reads_and_writes_its_tensors_on_the_npu(
    shape: tuple[int, int], dtype: torch.dtype, any_device: torch.device
) -> None:
    x, target = logits(*shape, dtype).to(any_device).requires_grad_(), targets(*shape).to(any_device)
    tensor = x.nbytes

    loss = launched(lambda: cross_entropy(x, target), "npu_ce_forward", read=tensor)
    launched(loss.backward, "npu_ce_backward", read=tensor, written=tensor)
    in_place = cross_entropy(x, target, inplace_backward=True)
    launched(in_place.backward, "npu_ce_backward", read=tensor, written=tensor)

    drop_in = partial(npu_cross_entropy_loss, x.detach(), target)
    loss, log_prob, _, _ = launched(drop_in, "npu_ce_", read=tensor, written=tensor)
    backward = partial(npu_cross_entropy_loss_backward, loss, log_prob, target)
    launched(backward, "npu_ce_backward", read=tensor, written=tensor)
