# SPDX-License-Identifier: Apache-2.0
"""The operators on DTensors: numbers and gradients of each placement, against one process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from collectives import Watched
from oracle import Options
from ranks import run_on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch_features import DTENSORS_DIFFERENTIATE_TWICE

import npu_ce_jit

ROWS, CLASSES = 7, 13  # neither 2 nor 4 divides these
ALL = Options(label_smoothing=0.2, z_loss=0.1, softcap=5.0, logit_scale=1.3)
OPTIONS = (Options(), Options(reduction="sum", z_loss=0.01, ignore_index=3), ALL, ALL._replace(reduction="none"))
RETURN_ALL = {"return_z_loss": True, "return_lse": True, "return_argmax": True, "return_entropy": True}


def problem(dtype: torch.dtype, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same on every rank. All ignored rows are in the first half."""
    torch.manual_seed(5)
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64).to(dtype) * 3
    target = torch.randint(CLASSES, (ROWS,))
    target[:3] = ignore_index
    return logits, target, torch.rand(CLASSES) + 0.1


def all_outputs(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> list[Tensor]:
    output = npu_ce_jit.cross_entropy(logits, target, weight, **options.as_dict(), **RETURN_ALL)
    assert isinstance(output, npu_ce_jit.CrossEntropyOutput)
    loss, z_loss, lse, argmax, entropy = output
    return [loss, z_loss, lse, entropy, argmax]


def drop_in(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> list[Tensor]:
    loss, log_prob, z_loss, lse = npu_ce_jit.npu_cross_entropy_loss(
        logits, target, weight, options.reduction, options.ignore_index, options.label_smoothing, options.z_loss, True
    )
    return [loss, log_prob, z_loss, lse]


def loss_alone(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> list[Tensor]:
    return [npu_ce_jit.cross_entropy(logits, target, weight, **options.as_dict())]


def run(function: Any, logits: Tensor, *others: Any) -> tuple[list[Tensor], Tensor]:
    """The outputs, and the gradient of a sum of squares in which every element has its own factor."""
    leaf = logits.detach().requires_grad_()
    outputs = function(leaf, *others)
    total = sum((v * v).sum() for v in outputs if v.requires_grad)
    (gradient,) = torch.autograd.grad(total, leaf)
    return [v.detach() for v in outputs], gradient


def check_placements(
    mesh_shape: tuple[int, ...], placements: list[Any], all_options: Sequence[Options], functions: Sequence[Any]
) -> None:
    mesh = init_device_mesh("cpu", mesh_shape)
    everywhere = [Replicate()] * mesh.ndim
    for of_logits, options, weighted, function in product(placements, all_options, (False, True), functions):
        logits, target, weight = problem(torch.float64, options.ignore_index)
        if any(p.is_partial() for p in of_logits):
            ranks = mesh.size() if mesh.ndim == 1 else mesh.shape[0]
            whole = [Replicate() if p.is_partial() else p for p in of_logits]
            shared = distribute_tensor(logits / ranks, mesh, whole)
            shared = DTensor.from_local(shared.to_local(), mesh, of_logits, shape=logits.shape, stride=logits.stride())
        else:
            shared = distribute_tensor(logits, mesh, of_logits)
        w = weight if weighted else None
        shared_weight = distribute_tensor(weight, mesh, [Shard(0)] * mesh.ndim) if weighted else None
        # Targets with other placements than the rows are redistributed.
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
    placements = [[Shard(0)], [Shard(1)], [Replicate()], [Partial()]]
    check_placements((2,), placements, OPTIONS, (all_outputs, drop_in, loss_alone))
    check_mean(rank)
    check_mixed(rank)
    check_inference_mode(rank)
    check_backward_operator(rank)
    check_collectives(rank)
    check_special_values(rank)
    if DTENSORS_DIFFERENTIATE_TWICE:
        check_second_order(rank)


def check_mean(rank: int) -> None:
    """The mean over all ranks' rows. Before 2.15, torch's own was the mean of the ranks' means."""
    mesh = init_device_mesh("cpu", (2,))
    logits, target = torch.arange(40.0).view(8, 5) ** 2 / 40, torch.tensor([-100, -100, -100, 4, 0, 3, 2, 0])
    shared, shared_target = (distribute_tensor(t, mesh, [Shard(0)]) for t in (logits, target))
    right = F.cross_entropy(logits, target)
    torch.testing.assert_close(npu_ce_jit.cross_entropy(shared, shared_target).full_tensor(), right)


def check_mixed(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    logits, target, weight = problem(torch.float32, -100)
    shared, shared_target = (distribute_tensor(t, mesh, [Shard(0)]) for t in (logits, target))
    with pytest.raises(RuntimeError, match=r"expected target to be a DTensor on input's .*, got Tensor; pass .*Shard"):
        npu_ce_jit.cross_entropy(shared, target)
    with pytest.raises(RuntimeError, match=r"expected weight to be a DTensor on input's .*, got Tensor; pass .*Repl"):
        npu_ce_jit.cross_entropy(shared, shared_target, weight)
    with pytest.raises(RuntimeError, match=r"expected input to be a DTensor, as the other tensors are, got Tensor"):
        npu_ce_jit.cross_entropy(logits, shared_target)
    with pytest.raises(RuntimeError, match=r"expected target to be a DTensor on input's .*, got a DTensor on"):
        npu_ce_jit.cross_entropy(shared, distribute_tensor(target, init_device_mesh("cpu", (1, 2)), [Shard(0)] * 2))


def check_inference_mode(rank: int) -> None:
    """In inference mode, autograd does not run before DTensor: the public operators reach DTensor directly."""
    mesh = init_device_mesh("cpu", (2,))
    logits, target, _ = problem(torch.float64, -100)
    for placement, function in product((Shard(0), Shard(1)), (all_outputs, drop_in)):
        shared, shared_target = (
            distribute_tensor(logits, mesh, [placement]),
            distribute_tensor(target, mesh, [Replicate()]),
        )
        with torch.inference_mode():
            for a, b in zip(
                function(shared, shared_target, None, ALL), function(logits, target, None, ALL), strict=True
            ):
                torch.testing.assert_close(a.full_tensor(), b)


def check_backward_operator(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    logits, target, _ = problem(torch.float64, -100)
    for placement in (Shard(0), Shard(1)):
        loss, log_prob, _, lse = npu_ce_jit.npu_cross_entropy_loss(logits, target, None, "mean", -100, 0.1, 0.01)
        tensors = (torch.ones_like(loss), log_prob, target, lse)
        placements = (Replicate(), placement, Replicate(), Replicate())
        shared = [distribute_tensor(t, mesh, [p]) for t, p in zip(tensors, placements, strict=True)]
        results = []
        for grad_loss, log_probs, targets, lses in (tensors, shared):
            arguments = (grad_loss, log_probs, targets, None, None, lses, "mean", -100, 0.1, 0.01)
            results.append(npu_ce_jit.npu_cross_entropy_loss_backward(*arguments))
        torch.testing.assert_close(results[1].full_tensor(), results[0])


def check_collectives(rank: int) -> None:
    """Sharded rows: four sums in one collective. Sharded classes: two, without one for checks. Backward: none."""
    mesh = init_device_mesh("cpu", (2,))
    logits, target, _ = problem(torch.float32, -100)
    for placement, of_target, expected in (
        (Shard(0), Shard(0), [16]),
        (Shard(1), Replicate(), [4 * ROWS, 4 * 2 * ROWS]),
    ):
        shared = distribute_tensor(logits, mesh, [placement]).requires_grad_()
        shared_target = distribute_tensor(target, mesh, [of_target])
        with Watched() as forward:
            loss = npu_ce_jit.cross_entropy(shared, shared_target)
        with Watched() as backward:
            loss.backward()
        assert forward.collectives == [("all_reduce", size) for size in expected]
        assert backward.collectives == []


def check_second_order(rank: int) -> None:
    """Sharded rows: exact, by DTensor's rules for the operators of derivatives. Sharded classes: exact, or an error."""
    mesh = init_device_mesh("cpu", (2,))
    logits, target, _ = problem(torch.float64, -100)

    def second(input: Tensor, classes: Tensor) -> Tensor:
        leaf = input.detach().requires_grad_()
        loss = npu_ce_jit.cross_entropy(leaf, classes, label_smoothing=0.1, z_loss=0.1)
        (gradient,) = torch.autograd.grad(loss * loss, leaf, create_graph=True)
        return torch.autograd.grad((gradient * gradient).sum(), leaf)[0]

    shared_target = distribute_tensor(target, mesh, [Replicate()])
    of_rows = second(distribute_tensor(logits, mesh, [Shard(0)]), shared_target)
    torch.testing.assert_close(of_rows.full_tensor(), second(logits, target))
    try:
        of_classes = second(distribute_tensor(logits, mesh, [Shard(1)]), shared_target)
    except (AssertionError, IndexError, RuntimeError, NotImplementedError):
        return  # only before torch 2.15
    torch.testing.assert_close(of_classes.full_tensor(), second(logits, target))


def check_special_values(rank: int) -> None:
    """argmax is the lowest index of a NaN, or else of the maximum. A NaN in an ignored row has no effect."""
    mesh = init_device_mesh("cpu", (2,))
    logits, target, _ = problem(torch.float64, -100)
    logits[0, 9] = torch.nan
    logits[1, [2, 11]] = 50.0
    logits[4, [3, 10]] = torch.nan
    logits[5, :] = -torch.inf
    logits[6, 8:] = -torch.inf
    target[6] = 2
    for placement, options in product(
        (Shard(0), Shard(1)), (Options(reduction="none"), ALL._replace(reduction="none"))
    ):
        shared, shared_target = (
            distribute_tensor(logits, mesh, [placement]),
            distribute_tensor(target, mesh, [Replicate()]),
        )
        ours = all_outputs(shared, shared_target, None, options)
        one = all_outputs(logits, target, None, options)
        for a, b in zip(ours, one, strict=True):
            torch.testing.assert_close(a.full_tensor(), b, equal_nan=True)


@pytest.mark.feature("DTensor rows, right mean")
@pytest.mark.feature("DTensor vocabulary")
def test_placements_on_two_ranks():
    run_on_ranks(2, check_one_dimension)


def check_compile(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    compiled = torch.compile(loss_alone, fullgraph=True, backend="aot_eager")
    for placement, options in product((Shard(0), Shard(1)), (Options(), ALL)):
        logits, target, weight = problem(torch.float32, options.ignore_index)
        shared, shared_target, shared_weight = (
            distribute_tensor(t, mesh, [p])
            for t, p in ((logits, placement), (target, Replicate()), (weight, Replicate()))
        )
        results = []
        for function in (compiled, loss_alone):  # compiled first, so that tracing has to find the rules itself
            leaf = shared.detach().requires_grad_()
            (loss,) = function(leaf, shared_target, shared_weight, options)
            loss.backward()
            assert isinstance(leaf.grad, DTensor)
            assert list(leaf.grad.placements) == [placement]
            results.append((loss.full_tensor().detach(), leaf.grad.full_tensor()))
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.feature("DTensor under torch.compile")
def test_compiled_on_two_ranks():
    run_on_ranks(2, check_compile)


def check_two_dimensions(rank: int) -> None:
    placements = [
        [Shard(0), Shard(1)],
        [Shard(1), Shard(0)],
        [Shard(0), Shard(0)],
        [Shard(1), Shard(1)],
        [Replicate(), Shard(1)],
        [Partial(), Shard(0)],
    ]
    check_placements((2, 2), placements, OPTIONS[2:], (all_outputs, drop_in))


@pytest.mark.feature("DTensor rows and vocabulary on a 2-D mesh")
def test_placements_on_a_mesh_of_two_by_two():
    run_on_ranks(4, check_two_dimensions)


def test_nobody_without_a_dtensor_imports_its_rules():
    program = """
import sys, torch, npu_ce_jit
npu_ce_jit.cross_entropy(torch.randn(3, 4), torch.tensor([0, 1, 2]))
print(*sorted(name for name in sys.modules if "distributed.tensor" in name or "distributed.dtensor" in name))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"
