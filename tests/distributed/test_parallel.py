# SPDX-License-Identifier: Apache-2.0
"""The vocabulary shared by the ranks of a group: numbers against one process and the float64 formula, and the costs."""

from __future__ import annotations

import datetime as dt
import os
import re
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from collectives import Watched
from oracle import Options, gradient, truth
from ranks import outcomes_on_ranks, run_on_ranks
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.bench.timing import peak_allocated


class Case(NamedTuple):
    sizes: tuple[int, ...]
    dtype: torch.dtype
    options: Options
    weighted: bool = False
    target_dtype: torch.dtype = torch.int64
    rows: int = 7


ALL = Options(label_smoothing=0.2, z_loss=0.1, softcap=5.0, logit_scale=1.3)
OPTIONS = (
    Options(),
    Options(reduction="sum", z_loss=0.01, ignore_index=3),
    Options(reduction="none", label_smoothing=0.1, ignore_index=-1),
    ALL,
    ALL._replace(reduction="none"),
)
SIZES = {2: ((5, 8), (40, 0), (64, 65)), 4: ((3, 1, 2, 9), (0, 70, 0, 3))}


def cases(ranks: int) -> list[Case]:
    found = [
        Case(sizes, dtype, options, weighted)
        for sizes, dtype, options, weighted in product(
            SIZES[ranks], (torch.float32, torch.bfloat16), OPTIONS, (False, True)
        )
    ]
    found += [Case(sizes, torch.float64, ALL, True, torch.int32) for sizes in SIZES[ranks]]
    found += [Case(sizes, torch.float16, Options(), False, torch.int32, rows=40) for sizes in SIZES[ranks]]
    return [*found, *(Case(SIZES[ranks][0], torch.float32, options, True, rows=0) for options in OPTIONS)]


class Problem(NamedTuple):
    logits: Tensor
    target: Tensor
    weight: Tensor | None
    grad_loss: Tensor


def problem(case: Case) -> Problem:
    """The same problem on every rank."""
    torch.manual_seed(len(case.sizes) + case.rows)
    classes = sum(case.sizes)
    logits = (torch.randn(case.rows, classes, dtype=torch.float64) * 3).to(case.dtype)
    target = torch.randint(classes, (case.rows,)).to(case.target_dtype)
    target[2:3] = case.options.ignore_index
    weight = torch.rand(classes) + 0.1 if case.weighted else None
    grad_loss = torch.rand(case.rows if case.options.reduction == "none" else ()) + 0.5
    return Problem(logits, target, weight, grad_loss.to(case.dtype))


def columns(rank: int, case: Case) -> slice:
    start = sum(case.sizes[:rank])
    return slice(start, start + case.sizes[rank])


def assert_as_exact(ours: Tensor, one_process: Tensor, exact: Tensor, what: object) -> None:
    """The error is at most twice that of one process, plus four roundings of the largest result."""
    if not exact.numel():
        assert ours.shape == exact.shape
        return
    assert ours.dtype == one_process.dtype, what
    assert torch.equal(ours.isnan(), exact.isnan()), what
    error, allowed = ((v.double() - exact).nan_to_num().abs().max() for v in (ours, one_process))
    rounding = torch.finfo(ours.dtype).eps * exact.nan_to_num().abs().max()
    assert error <= 2 * allowed + 4 * rounding, f"{what}: {error} against {allowed}"


def run(local: Tensor, target: Tensor, weight: Tensor | None, options: Options, own: slice, **more: Any) -> Tensor:
    from npu_ce_jit.parallel import vocab_parallel_cross_entropy

    weight = None if weight is None else weight[own]
    return vocab_parallel_cross_entropy(local, target, weight=weight, **options.as_dict(), **more)


def check_numbers(rank: int, case: Case) -> None:
    logits, target, weight, grad_loss = problem(case)
    own = columns(rank, case)
    local = logits[:, own].t().contiguous().t() if case.rows % 2 else logits[:, own]  # strides of either order
    local = local.detach().requires_grad_()
    with Watched() as forward:
        ours = run(local, target, weight, case.options, own)
    with Watched() as backward:
        ours.backward(grad_loss)
    item, lanes = 8 if case.dtype is torch.float64 else 4, 2 + case.weighted + bool(case.options.label_smoothing)
    numbers = (8 * 4 * len(case.sizes), item * case.rows, item * lanes * case.rows)
    assert forward.collectives == [("all_reduce", of_bytes) for of_bytes in numbers], (case, forward.collectives)
    assert backward.collectives == []

    whole = logits.clone().requires_grad_()
    one = npu_ce_jit.cross_entropy(whole, target, weight, **case.options.as_dict())
    one.backward(grad_loss)
    assert local.grad is not None
    assert whole.grad is not None
    if not case.rows:
        torch.testing.assert_close(ours, one, equal_nan=True)
        assert local.grad.shape == local.shape
        return
    assert_as_exact(ours.detach(), one.detach(), truth(logits.double(), target, weight, case.options).loss, case)
    exact = gradient(logits, target, weight, case.options, grad_loss, torch.float64)[:, own]
    assert_as_exact(local.grad, whole.grad[:, own], exact, case)


def check_all(rank: int, cases: list[Case]) -> None:
    for case in cases:
        check_numbers(rank, case)


@pytest.mark.feature("tensor-parallel vocabulary")
@pytest.mark.parametrize("ranks", [2, 4])
def test_numbers_are_those_of_one_process_for_three_collectives(ranks):
    run_on_ranks(ranks, check_all, cases(ranks))


def check_special(rank: int) -> None:
    """NaN, infinities, masked classes and wholly masked shards, in rows that count and in ignored rows."""
    sizes = (3, 40)
    classes, own = sum(sizes), slice(0, 3) if rank == 0 else slice(3, 43)
    nan, inf = torch.nan, torch.inf
    logits = torch.randn(20, classes)
    target = torch.randint(classes, (20,))
    target[8:16] = -100
    for start in (0, 8):
        logits[start, 1] = nan
        logits[start + 1, 30] = inf
        logits[start + 2, :3] = -inf
        logits[start + 3, 3:] = -inf
        logits[start + 4] = -inf
        logits[start + 5, 3], logits[start + 5, 7] = -inf, -inf
        logits[start + 6, :3], logits[start + 6, 9] = -inf, nan
        logits[start + 7, 2], logits[start + 7, 9] = inf, nan
    logits[16] = 200 * torch.randn(classes)
    logits[17, 5] = 1e4
    target[[2, 3, 5]] = torch.tensor([5, 1, 20])  # with finite logits
    weight = torch.rand(classes)
    several = (Options(), ALL._replace(softcap=None), ALL, Options(label_smoothing=1.0))
    for options, w in product([o._replace(reduction="none") for o in several], (None, weight)):
        local, whole = logits[:, own].clone().requires_grad_(), logits.clone().requires_grad_()
        ours, one = run(local, target, w, options, own), npu_ce_jit.cross_entropy(whole, target, w, **options.as_dict())
        torch.testing.assert_close(ours, one, equal_nan=True)
        for loss in ours, one:
            loss.sum().backward()
        torch.testing.assert_close(local.grad, whole.grad[:, own], equal_nan=True)
        assert not local.grad[8:16].any()


def check_errors(rank: int) -> None:
    from npu_ce_jit.parallel import vocab_parallel_cross_entropy

    logits = torch.randn(4, 3 + rank, requires_grad=True)
    with pytest.raises(IndexError, match=r"target\[2\] = 7 is out of bounds for 7 classes"):
        vocab_parallel_cross_entropy(logits, torch.tensor([0, 6, 7, -100]))
    with pytest.raises(RuntimeError, match=r"expected local_logits of shape \[\.\.\., C_rank\], got \[4\]"):
        vocab_parallel_cross_entropy(logits[:, 0], torch.tensor([0, 6, 7, -100]))
    with pytest.raises(RuntimeError, match=r"expected weight of shape \[[34]\], one for each class of the rank"):
        vocab_parallel_cross_entropy(logits, torch.tensor([0, 6, 5, -100]), weight=torch.ones(2))
    loss = vocab_parallel_cross_entropy(logits, torch.tensor([0, 6, 5, -100]), reduction="sum")
    with pytest.raises(NotImplementedError, match="create_graph=True"):
        torch.autograd.grad(loss, logits, create_graph=True)


def check_memory(rank: int) -> None:
    """The gradient is the only tensor of the logits' size that is allocated."""
    rows, classes = 64, 2000
    own = slice(classes * rank, classes * (rank + 1))
    torch.manual_seed(0)
    target = torch.randint(2 * classes, (rows,))
    target[3] = -100
    for dtype, (options, weight) in product(
        (torch.float32, torch.bfloat16), ((Options(), None), (ALL, torch.rand(2 * classes)))
    ):
        logits = torch.randn(rows, classes).to(dtype).requires_grad_()
        with Watched(large=rows * classes) as forward:
            loss = run(logits, target, weight, options, own)
        with Watched(large=rows * classes) as backward:
            torch.autograd.grad(loss, logits)
        assert forward.large_outputs == []
        assert backward.large_outputs == ["_backward"]

        def step(logits=logits, weight=weight, options=options) -> Tensor:
            return torch.autograd.grad(run(logits, target, weight, options, own), logits)[0]

        assert peak_allocated(step) < 1.2 * logits.numel() * logits.element_size()


def check_compile(rank: int) -> None:
    torch._dynamo.reset()
    own = columns(rank, Case((5, 8), torch.float32, ALL))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for options in (Options(), ALL):
        logits, target, weight, _ = problem(Case((5, 8), torch.float32, options, True))
        results = []
        for function in (run, compiled):
            local = logits[:, own].clone().requires_grad_()
            loss = function(local, target, weight, options, own)
            loss.backward()
            results.append((loss.detach(), local.grad))
        torch.testing.assert_close(*results, rtol=0, atol=0)


def check_two_ranks(rank: int) -> None:
    check_special(rank)
    check_errors(rank)
    check_memory(rank)
    check_compile(rank)


@pytest.mark.feature("tensor-parallel vocabulary under torch.compile")
def test_special_values_errors_memory_and_compile():
    run_on_ranks(2, check_two_ranks)


def check_subgroups(rank: int) -> None:
    """Two groups of two ranks, each with its own problem."""
    import torch.distributed as dist

    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    torch.manual_seed(rank % 2)
    logits, target = torch.randn(6, 10), torch.randint(10, (6,))
    own = slice(0, 4) if rank < 2 else slice(4, 10)
    local = logits[:, own].clone().requires_grad_()
    whole = logits.clone().requires_grad_()
    ours = run(local, target, None, ALL, own, group=groups[rank % 2])
    one = npu_ce_jit.cross_entropy(whole, target, **ALL.as_dict())
    torch.testing.assert_close(ours, one)
    for loss in ours, one:
        loss.backward()
    torch.testing.assert_close(local.grad, whole.grad[:, own])


def test_a_group_of_some_ranks():
    run_on_ranks(4, check_subgroups)


def error_of_a_missing_rank(rank: int) -> str | None:
    """Rank 1 comes too late to one loss, and dies before the next; returns rank 0's errors."""
    import torch.distributed as dist

    logits, target = torch.randn(3, 4), torch.tensor([0, 7, 3])
    dist.barrier()  # so that both ranks are there when the timeout starts
    hasty = dist.new_group(timeout=dt.timedelta(seconds=10))
    message = None
    if rank == 0:
        with pytest.raises(RuntimeError) as late:
            run(logits, target, None, Options(), slice(None), group=hasty)
        message = str(late.value)
    dist.barrier()
    if rank == 1:
        os._exit(3)
    with pytest.raises(RuntimeError) as dead:
        run(logits, target, None, Options(), slice(None))
    return f"{message}\n{dead.value}"


@pytest.mark.feature("dead or late rank, bounded wait")
def test_a_rank_that_is_late_or_dies_gives_the_error_of_torch_distributed():
    (failure, message), (death, _) = outcomes_on_ranks(2, error_of_a_missing_rank)
    assert failure is None
    assert death == "rank 1 died"
    assert re.search(r"[Tt]imed out", message.splitlines()[0])
    assert re.search(r"[Cc]onnection (closed|reset) by peer", message)


def test_without_a_group_it_says_what_to_call():
    from npu_ce_jit.parallel import vocab_parallel_cross_entropy

    with pytest.raises(RuntimeError, match=r"call torch\.distributed\.init_process_group"):
        vocab_parallel_cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]))
