# SPDX-License-Identifier: Apache-2.0
"""The loss from hidden states on an NPU never synchronises with the host, so a step can be captured and replayed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401
from shapes import targets
from torch import Tensor

from npu_ce_jit import linear_cross_entropy, linear_token_logprobs
from npu_ce_jit.bench.timing import peak_memory
from npu_ce_jit.torch_compat import LinearCrossEntropyOptions


def step(reduction: str, hidden: Tensor, head: Tensor, target: Tensor) -> list[Tensor]:
    found = linear_cross_entropy(
        hidden, head, target, reduction=reduction, z_loss=0.01, return_entropy=True, skip_ignored=True,
        options=LinearCrossEntropyOptions(batch_chunk_size=4),
    )  # fmt: skip
    total = found.loss.sum() - found.entropy.sum() if reduction == "none" else found.loss
    return [found.loss.detach(), found.entropy.detach(), *torch.autograd.grad(total, (hidden, head))]


def expected(reduction: str, hidden: Tensor, head: Tensor, target: Tensor) -> list[Tensor]:
    leaves = [t.double().requires_grad_() for t in (hidden, head)]
    x = F.linear(*leaves)
    counted, lse = target != -100, x.logsumexp(1)
    loss = F.cross_entropy(x, target, reduction=reduction)
    z = torch.where(counted, 0.01 * lse * lse, 0)
    loss = loss + (z if reduction == "none" else z.sum() / counted.sum())
    entropy = torch.where(counted, -(x.softmax(1) * x.log_softmax(1)).sum(1), 0)
    total = loss.sum() - entropy.sum() if reduction == "none" else loss
    return [loss.detach(), entropy.detach(), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_step_is_captured_and_replayed_with_other_rows_ignored(reduction: str, device: torch.device) -> None:
    """A capture refuses calls that wait. The number of rows that are not ignored differs between replays."""
    hidden, head = torch.randn(11, 7).to(device).requires_grad_(), torch.randn(53, 7).to(device).requires_grad_()
    target = targets(11, 53, 0.5).to(device)
    aside = torch.npu.Stream()
    aside.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(aside):
        step(reduction, hidden, head, target)
    torch.npu.current_stream().wait_stream(aside)
    torch.npu.synchronize()

    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        captured = step(reduction, hidden, head, target)
    for share in (0.1, 0.8):
        values, classes = torch.randn(11, 7), targets(11, 53, share)
        hidden.detach().copy_(values)
        target.copy_(classes)
        graph.replay()
        torch.npu.synchronize()
        right = expected(reduction, values, head.detach().cpu(), classes)
        torch.testing.assert_close([t.cpu() for t in captured], right, check_dtype=False, rtol=1e-4, atol=1e-5)
    graph.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_and_entropy_take_the_memory_of_the_loss(dtype: torch.dtype, device: torch.device) -> None:
    """Forward and backward, in chunks: whole logits would be four chunks."""
    rows, features, classes = 2048, 40, 4099
    hidden, head = (
        torch.randn(length, features, dtype=dtype).to(device).requires_grad_() for length in (rows, classes)
    )
    target = targets(rows, classes, 0.2).to(device)

    def loss() -> tuple[Tensor, ...]:
        return torch.autograd.grad(linear_cross_entropy(hidden, head, target, reduction="none").sum(), (hidden, head))

    def logprobs_and_entropy() -> tuple[Tensor, ...]:
        logprobs, entropy, _ = linear_token_logprobs(hidden, head, target, return_entropy=True)
        return torch.autograd.grad(logprobs.sum() + entropy.sum(), (hidden, head))

    for step in (loss, logprobs_and_entropy):
        step()  # so that one-time allocations are not counted
    of_loss, of_both = (peak_memory(step, device) for step in (loss, logprobs_and_entropy))
    assert of_loss is not None and of_both is not None
    assert of_both <= 1.05 * of_loss
    assert of_both < 0.5 * rows * classes * dtype.itemsize
