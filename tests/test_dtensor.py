# SPDX-License-Identifier: Apache-2.0
"""The operators on DTensors: each placement's numbers and gradients against one process's."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import Options
from ranks import run_on_ranks
from torch import Tensor

import npu_ce_jit

ROWS, CLASSES = 7, 13  # which neither 2 nor 4 divides
ALL = Options(label_smoothing=0.2, z_loss=0.1, softcap=5.0, logit_scale=1.3)
OPTIONS = (Options(), Options(reduction="sum", z_loss=0.01, ignore_index=3), ALL, ALL._replace(reduction="none"))
RETURN_ALL = {"return_z_loss": True, "return_lse": True, "return_argmax": True, "return_entropy": True}


def problem(dtype: torch.dtype, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same on every rank. The rows that are ignored are all in the first half, and one of them is not finite."""
    torch.manual_seed(5)
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64).to(dtype) * 3
    target = torch.randint(CLASSES, (ROWS,))
    target[:3] = ignore_index
    return logits, target, torch.rand(CLASSES) + 0.1


def lean(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> list[Tensor]:
    output = npu_ce_jit.cross_entropy(logits, target, weight, **options._asdict(), **RETURN_ALL)
    assert isinstance(output, npu_ce_jit.CrossEntropyOutput)
    loss, z_loss, lse, argmax, entropy = output
    return [loss, z_loss, lse, entropy, argmax]


def drop_in(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> list[Tensor]:
    loss, log_prob, z_loss, lse = npu_ce_jit.npu_cross_entropy_loss(
        logits, target, weight, options.reduction, options.ignore_index, options.label_smoothing, options.z_loss, True
    )
    return [loss, log_prob, z_loss, lse]


def loss_alone(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> list[Tensor]:
    return [npu_ce_jit.cross_entropy(logits, target, weight, **options._asdict())]


def run(function: Any, logits: Tensor, *others: Any) -> tuple[list[Tensor], Tensor]:
    """The outputs, and the gradient of a sum of squares, in which every element has a factor of its own."""
    leaf = logits.detach().requires_grad_()
    outputs = function(leaf, *others)
    total = sum((v * v).sum() for v in outputs if v.requires_grad)
    (gradient,) = torch.autograd.grad(total, leaf)
    return [v.detach() for v in outputs], gradient


def check_placements(rank: int, mesh_shape: tuple[int, ...], placements: list[Any], dtype: torch.dtype) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", mesh_shape)
    everywhere = [Replicate()] * mesh.ndim
    for of_logits, options, weighted, function in product(
        placements, OPTIONS, (False, True), (lean, drop_in, loss_alone)
    ):
        logits, target, weight = problem(dtype, options.ignore_index)
        if any(p.is_partial() for p in of_logits):
            ranks = mesh.size() if mesh.ndim == 1 else mesh.shape[0]
            whole = [Replicate() if p.is_partial() else p for p in of_logits]
            shared = distribute_tensor(logits / ranks, mesh, whole)
            shared = DTensor.from_local(shared.to_local(), mesh, of_logits, shape=logits.shape, stride=logits.stride())
        else:
            shared = distribute_tensor(logits, mesh, of_logits)
        w = weight if weighted else None
        shared_weight = distribute_tensor(weight, mesh, [Shard(0)] * mesh.ndim) if weighted else None
        # Targets as rows are, or not: they are redistributed.
        for of_target in (everywhere, [Shard(0) if p.is_shard(0) else Replicate() for p in of_logits]):
            shared_target = distribute_tensor(target, mesh, of_target)
            ours, gradient = run(function, shared, shared_target, shared_weight, options)
            one, expected = run(function, logits, target, w, options)
            what = f"{of_logits} {options} {weighted} {function.__name__}: "
            for i, (a, b) in enumerate(zip(ours, one, strict=True)):
                assert isinstance(a, DTensor)
                torch.testing.assert_close(a.full_tensor(), b, msg=lambda m, i=i, what=what: f"{what}{i}: {m}")
            assert isinstance(gradient, DTensor)
            if not any(p.is_partial() for p in of_logits):
                assert list(gradient.placements) == of_logits
            torch.testing.assert_close(gradient.full_tensor(), expected, msg=lambda m, what=what: what + m)


def check_one_dimension(rank: int) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    placements = [[Shard(0)], [Shard(1)], [Replicate()], [Partial()]]
    check_placements(rank, (2,), placements, torch.float64)


@pytest.mark.feature("DTensor rules")
def test_placements_on_two_ranks():
    run_on_ranks(2, check_one_dimension)


def check_two_dimensions(rank: int) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    placements = [
        [Shard(0), Shard(1)],
        [Shard(1), Shard(0)],
        [Shard(0), Shard(0)],
        [Shard(1), Shard(1)],
        [Replicate(), Shard(1)],
        [Partial(), Shard(0)],
    ]
    check_placements(rank, (2, 2), placements, torch.float64)


@pytest.mark.feature("DTensor rules on a 2-D mesh")
def test_placements_on_a_mesh_of_two_by_two():
    run_on_ranks(4, check_two_dimensions)
