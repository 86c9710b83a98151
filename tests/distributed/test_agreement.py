# SPDX-License-Identifier: Apache-2.0
"""An error on one rank, or a difference between ranks, raises on all of them at once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from collectives import Watched
from ranks import run_on_ranks
from torch import Tensor
from torch._subclasses import FakeTensorMode

ROWS, CLASSES = 6, 5


class Mistake(NamedTuple):
    """Arguments that only rank 1 passes, and the message that it gets."""

    arguments: Callable[[], dict[str, Any]]
    message: str


def target() -> Tensor:
    return torch.arange(ROWS)


REFUSED = "got an error on 1 of 3 ranks; rank 1 of the group: "
MISTAKES = {
    "no tensor": Mistake(lambda: {"local_logits": [1.0]}, "TypeError: expected local_logits to be a Tensor"),
    "one row less": Mistake(lambda: {"target": target()[1:]}, r"ValueError: .*batch_size \(6\) to match"),
    "dtype": Mistake(lambda: {"local_logits": torch.ones(ROWS, CLASSES).int()}, "NotImplementedError: .*int32"),
    "shape": Mistake(lambda: {"local_logits": torch.ones(ROWS)}, r"RuntimeError: .*shape \[..., C_rank\]"),
    "option": Mistake(lambda: {"softcap": -1.0}, "RuntimeError: expected softcap finite and above 0"),
    "reduction": Mistake(lambda: {"reduction": "avg"}, "ValueError: expected reduction 'none'"),
    "formula": Mistake(lambda: {"label_smoothing_formula": "x"}, "ValueError: expected label_smoothing_formula"),
}
DIFFERENCES = {
    "rows": (
        lambda: {"local_logits": torch.ones(4, CLASSES), "target": torch.zeros(4).long()},
        r"number of rows 6 \(rank 0\), 4 \(rank 1\), 6 \(rank 2\); sum of targets 15 \(rank 0\), 0 \(rank 1\)",
    ),
    "dtypes": (
        lambda: {"local_logits": torch.ones(ROWS, CLASSES).half()},
        r"dtype float32 \(rank 0\), float16 \(rank 1\), float32 \(rank 2\)",
    ),
    "reductions": (lambda: {"reduction": "sum"}, r"got reduction 1 \(rank 0\), 2 \(rank 1\), 1 \(rank 2\)$"),
    "options": (lambda: {"z_loss": 0.5}, r"got z_loss 0.0 \(rank 0\), 0.5 \(rank 1\), 0.0 \(rank 2\)$"),
    "targets": (lambda: {"target": target() // 2}, r"got sum of targets 15 \(rank 0\), 6 \(rank 1\), 15 \(rank 2\)$"),
    "weights": (lambda: {"weight": torch.ones(CLASSES)}, r"got weight none \(rank 0\), given \(rank 1\), none"),
}


def call(**arguments: Any) -> Tensor:
    from npu_ce_jit.parallel import vocab_parallel_cross_entropy

    return vocab_parallel_cross_entropy(**{"local_logits": torch.ones(ROWS, CLASSES), "target": target(), **arguments})


def check_all(rank: int) -> None:
    import torch.distributed as dist

    for name, mistake in MISTAKES.items():
        began = time.monotonic()
        with pytest.raises((RuntimeError, ValueError, TypeError)) as raised:  # NotImplementedError is a RuntimeError
            call(**(mistake.arguments() if rank == 1 else {}))
        message = f"{type(raised.value).__name__}: {raised.value}" if rank == 1 else str(raised.value)
        assert re.search(mistake.message, message), (name, message)
        assert rank == 1 or re.search(REFUSED + mistake.message, message), (name, message)
        assert time.monotonic() - began < 30, name
    for name, (arguments, message) in DIFFERENCES.items():
        with pytest.raises(RuntimeError, match="expected the same call of vocab_parallel_cross_entropy") as raised:
            call(**(arguments() if rank == 1 else {}))
        assert re.search(message, str(raised.value)), (name, str(raised.value))
    check_other_functions(rank)
    # The group still works.
    torch.testing.assert_close(call(), torch.tensor(15.0).log())
    dist.barrier()


def check_other_functions(rank: int) -> None:
    from npu_ce_jit.parallel import vocab_parallel_token_logprobs

    with pytest.raises(RuntimeError, match=r"function vocab_parallel_cross_entropy \(rank 0\), vocab_parallel_token"):
        (vocab_parallel_token_logprobs if rank else call)(local_logits=torch.ones(ROWS, CLASSES), target=target())
    with pytest.raises(RuntimeError, match="temperature" if rank == 1 else "rank 1 of the group: RuntimeError: .*temp"):
        vocab_parallel_token_logprobs(torch.ones(ROWS, CLASSES), target(), temperature=1.0 - (rank == 1))
    wrong = torch.ones(CLASSES if rank != 2 else 14)
    with pytest.raises(RuntimeError, match=r"shape \[5\], .*, or \[15\], .*, got \[14\] on rank 2 of the group"):
        call(weight=wrong)


@pytest.mark.feature("what is wrong on one rank is an error on all")
def test_it_is_an_error_on_every_rank():
    run_on_ranks(3, check_all)


def check_where_ranks_tell(rank: int) -> None:
    """The checks are one collective of four numbers a rank; none in a compiled graph, or on fake tensors."""
    import torch.distributed as dist

    from npu_ce_jit.parallel.arguments import _ranks_tell

    group = dist.distributed_c10d._get_default_group()
    with Watched() as watched:
        call()
    assert [bytes for _, bytes in watched.collectives] == [2 * 4 * 8, ROWS * 4, 2 * ROWS * 4]
    assert _ranks_tell(torch.ones(2), group)
    assert _ranks_tell(None, group)  # the group is of gloo only
    assert not torch.compile(lambda x: x + _ranks_tell(x, group), backend="eager")(torch.zeros(1)).any()
    with FakeTensorMode():
        assert not _ranks_tell(torch.ones(2), group)


def test_ranks_tell_each_other_on_a_cpu_in_eager_mode():
    run_on_ranks(2, check_where_ranks_tell)
