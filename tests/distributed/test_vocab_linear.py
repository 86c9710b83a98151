# SPDX-License-Identifier: Apache-2.0
"""The loss from hidden states with a shared vocabulary matrix: against one process, in chunks, and its memory."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from collectives import Watched
from oracle import Options, truth
from ranks import run_on_ranks
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.bench.timing import peak_allocated
from npu_ce_jit.op.distributed import vocab_parallel_linear
from npu_ce_jit.op.linear import chunks

ROWS, FEATURES, CLASSES = 11, 6, 13
ALL = Options(label_smoothing=0.2, z_loss=0.1, softcap=5.0, logit_scale=1.3)
OPTIONS = (Options(), Options(reduction="sum", z_loss=0.01, ignore_index=3), ALL, ALL._replace(reduction="none"))


def layer(dtype: torch.dtype, ignore_index: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Input, linear_weight and linear_bias, the targets, and the class weights; the same on every rank."""
    torch.manual_seed(7)
    shapes = ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    target = torch.randint(CLASSES, (ROWS,))
    target[:3] = ignore_index
    return [torch.randn(shape).to(dtype) for shape in shapes], target, torch.rand(CLASSES) + 0.1


def of_formula(tensors: list[Tensor], target: Tensor, weight: Tensor | None, options: Options) -> list[Tensor]:
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    loss = truth(F.linear(*leaves), target, weight, options).loss
    return [loss.detach(), *torch.autograd.grad((loss * loss).sum(), leaves)]


def small_chunks() -> None:
    """Makes chunks of a few rows, since these problems are smaller than a chunk."""
    chunks._FEWEST, chunks._SHARE = CLASSES, 0.3


def check_group(rank: int, sizes: tuple[int, ...]) -> None:
    from npu_ce_jit.parallel import vocab_parallel_linear_cross_entropy

    small_chunks()
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for dtype, options, weighted in product(
        (torch.float64, torch.float32, torch.bfloat16, torch.float16), OPTIONS, (False, True)
    ):
        tensors, target, weight = layer(dtype, options.ignore_index)
        leaves = [t.detach().requires_grad_() for t in (tensors[0], tensors[1][own], tensors[2][own])]
        loss = vocab_parallel_linear_cross_entropy(
            leaves[0], leaves[1], target, local_linear_bias=leaves[2], weight=weight[own] if weighted else None,
            **options.as_dict(),
        )  # fmt: skip
        ours = [loss.detach(), *torch.autograd.grad((loss * loss).sum(), leaves)]
        exact = of_formula(tensors, target, weight if weighted else None, options)
        exact[2:] = [of_all[own] for of_all in exact[2:]]
        for a, b in zip(ours, exact, strict=True):
            # A two-byte gradient is rounded once for each chunk and each rank.
            bound = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 8 * torch.finfo(dtype).eps)
            scale = b.abs().max() if b.numel() else torch.tensor(0.0)
            assert a.dtype == dtype
            torch.testing.assert_close(a.double(), b, rtol=0, atol=float(scale * bound))


def check_cost(rank: int) -> None:
    """The peak is far below this rank's logits, and the gradient of input takes one collective."""
    from npu_ce_jit.parallel import vocab_parallel_linear_cross_entropy

    rows, features, classes = 4096, 16, 4096
    tensors = [torch.randn(rows, features), torch.randn(classes, features)]
    target = torch.randint(2 * classes, (rows,))

    def step() -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        loss = vocab_parallel_linear_cross_entropy(leaves[0], leaves[1], target)
        return list(torch.autograd.grad(loss, leaves))

    inside, watched = vocab_parallel_linear.linear_of_group, Watched(large=rows * classes)

    def is_watched(*arguments: Any) -> Any:
        with watched:  # outside of it, a dispatch mode would see a single operator
            return inside(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocab_parallel_linear, "linear_of_group", is_watched)
        step()
    assert watched.large_outputs == []
    chunks = (len(watched.collectives) - 2) // 2
    assert chunks >= 4
    assert watched.collectives[0] == ("all_reduce", 16)
    assert watched.collectives[-1] == ("all_reduce", 4 * rows * features)
    assert sum(size for _, size in watched.collectives[1:-1]) == 3 * 4 * rows
    assert peak_allocated(step) < 0.35 * 4 * rows * classes
    loss = vocab_parallel_linear_cross_entropy(tensors[0].requires_grad_(), tensors[1], target)
    with pytest.raises(NotImplementedError, match="no derivative of the gradient of a loss over ranks, and"):
        torch.autograd.grad(loss, tensors[0], create_graph=True)


def check_two_ranks(rank: int) -> None:
    check_cost(rank)
    check_group(rank, (5, 8))
    check_group(rank, (13, 0))
    check_dtensors(rank, (2,))


@pytest.mark.feature("tensor-parallel vocabulary from hidden states")
def test_two_ranks_share_the_vocabulary_matrix():
    run_on_ranks(2, check_two_ranks)


def check_dtensors(rank: int, mesh_shape: tuple[int, ...]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    small_chunks()
    mesh = init_device_mesh("cpu", mesh_shape)
    S, R = Shard(0), Replicate()
    ways = [([R], [S]), ([S], [R]), ([S], [S])]
    if mesh.ndim == 2:
        ways = [([S, R], [R, S]), ([R, S], [S, R])]
    for (of_input, of_weight), options, weighted in product(ways, OPTIONS, (False, True)):
        tensors, target, weight = layer(torch.float64, options.ignore_index)
        placed = (of_input, of_weight, of_weight)
        leaves = [distribute_tensor(t, mesh, p).requires_grad_() for t, p in zip(tensors, placed, strict=True)]
        shared_target, shared_weight = (distribute_tensor(t, mesh, [R] * mesh.ndim) for t in (target, weight))
        arguments = {"linear_bias": leaves[2], "weight": shared_weight if weighted else None, **options.as_dict()}
        loss = npu_ce_jit.linear_cross_entropy(leaves[0], leaves[1], shared_target, **arguments)
        ours = [loss.detach(), *torch.autograd.grad((loss * loss).sum(), leaves)]
        exact = of_formula(tensors, target, weight if weighted else None, options)
        for a, b in zip(ours, exact, strict=True):
            assert isinstance(a, DTensor)
            torch.testing.assert_close(a.full_tensor(), b)
        with torch.inference_mode():
            again = npu_ce_jit.linear_cross_entropy(leaves[0], leaves[1], shared_target, **arguments)
            torch.testing.assert_close(again.full_tensor(), exact[0])


@pytest.mark.feature("DTensor rows and vocabulary from hidden states")
def test_a_mesh_of_two_by_two_shares_rows_and_the_vocabulary_matrix():
    run_on_ranks(4, check_dtensors, (2, 2))
