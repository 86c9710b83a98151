# SPDX-License-Identifier: Apache-2.0
"""The outputs of the linear loss beside the loss, where ranks share the vocabulary: against float64, in every form."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linear_outputs import ALL, DIFFERENTIABLE, skipping
from oracle import Options, truth
from ranks import run_on_ranks
from test_vocab_linear import layer, small_chunks
from torch import Tensor

import npu_ce_jit

OPTIONS = (Options("none"), Options("mean", 3, 0.2, 0.1, 5.0, 1.3))


def total(found: Any) -> Tensor:
    """A scalar that depends on every differentiable output."""
    return sum((n + 1.5) * getattr(found, name).square().sum() for n, name in enumerate(DIFFERENTIABLE))  # type: ignore[return-value]


def exact(tensors: list[Tensor], target: Tensor, weight: Tensor, options: Options, skip: bool) -> tuple[Any, Any]:
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    found = truth(F.linear(*leaves), target, weight, options)
    found = skipping(found, target, options.ignore_index) if skip else found
    return found, torch.autograd.grad(total(found), leaves)


def check_group(rank: int, sizes: tuple[int, ...], compiled: bool) -> None:
    from npu_ce_jit.parallel import vocab_parallel_linear_cross_entropy

    small_chunks()
    call = vocab_parallel_linear_cross_entropy
    if compiled:
        call = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=False)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for options, skip in product(OPTIONS, (False, True)):
        tensors, target, weight = layer(torch.float64, options.ignore_index)
        leaves = [t.detach().requires_grad_() for t in (tensors[0], tensors[1][own], tensors[2][own])]
        found = call(
            leaves[0][None], leaves[1], target[None], local_linear_bias=leaves[2], weight=weight[own],
            skip_ignored=skip, **ALL, **options.as_dict(),
        )  # fmt: skip
        gradients = torch.autograd.grad(total(found), leaves)
        right, right_gradients = exact(tensors, target, weight, options, skip)
        for name, value in found._asdict().items():
            torch.testing.assert_close(value.reshape(getattr(right, name).shape), getattr(right, name))
        expected = (right_gradients[0], right_gradients[1][own], right_gradients[2][own])
        torch.testing.assert_close(gradients, expected)


def check_dtensors(rank: int, mesh_shape: tuple[int, ...]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    small_chunks()
    mesh = init_device_mesh("cpu", mesh_shape)
    S, R = Shard(0), Replicate()
    ways = [([R], [S]), ([S], [R])] if mesh.ndim == 1 else [([S, R], [R, S])]
    for (of_input, of_weight), options, skip in product(ways, OPTIONS, (False, True)):
        tensors, target, weight = layer(torch.float64, options.ignore_index)
        placed = (of_input, of_weight, of_weight)
        leaves = [distribute_tensor(t, mesh, p).requires_grad_() for t, p in zip(tensors, placed, strict=True)]
        shared_target, shared_weight = (distribute_tensor(t, mesh, [R] * mesh.ndim) for t in (target, weight))
        found = npu_ce_jit.linear_cross_entropy(
            leaves[0], leaves[1], shared_target, linear_bias=leaves[2], weight=shared_weight, skip_ignored=skip,
            **ALL, **options.as_dict(),
        )  # fmt: skip
        gradients = torch.autograd.grad(total(found), leaves)
        right, right_gradients = exact(tensors, target, weight, options, skip)
        for name, value in found._asdict().items():
            torch.testing.assert_close(value.full_tensor(), getattr(right, name))
        torch.testing.assert_close(tuple(g.full_tensor() for g in gradients), right_gradients)


def check_two_ranks(rank: int) -> None:
    check_group(rank, (5, 8), compiled=False)
    check_group(rank, (13, 0), compiled=False)
    check_group(rank, (6, 7), compiled=True)
    check_dtensors(rank, (2,))


@pytest.mark.feature("tensor-parallel vocabulary from hidden states")
def test_two_ranks():
    run_on_ranks(2, check_two_ranks)


def check_four_ranks(rank: int) -> None:
    check_group(rank, (4, 0, 3, 6), compiled=False)
    check_dtensors(rank, (2, 2))


@pytest.mark.feature("DTensor rows and vocabulary from hidden states")
def test_four_ranks():
    run_on_ranks(4, check_four_ranks)
