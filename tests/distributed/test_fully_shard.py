# SPDX-License-Identifier: Apache-2.0
"""A model sharded by fully_shard: right gradients, and an error where they would be 1 / ranks of right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch_features import CAN_ADD_UP, GLOO_AVERAGES

import npu_ce_jit
from npu_ce_jit import cross_entropy, linear_cross_entropy

FEATURES, CLASSES, ROWS = 6, 13, 4  # ROWS: of each rank

Loss = Callable[["Model", Tensor, Tensor], Tensor]


class Model(nn.Module):
    """The same on every rank. With `options`, forward returns the loss, else the hidden states."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Linear(FEATURES, FEATURES).double()
        self.head = nn.Linear(FEATURES, CLASSES).double()
        self.options = options

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        hidden: Tensor = self.backbone(x)
        return loss_of(hidden, self.head, target, **self.options).mean() if self.options else hidden


def loss_of(hidden: Tensor, head: nn.Linear, target: Tensor, **options: Any) -> Tensor:
    return linear_cross_entropy(hidden, head.weight, target, linear_bias=head.bias, **options)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    rows = ROWS * dist.get_world_size()
    return torch.randn(rows, FEATURES, dtype=torch.float64), torch.randint(CLASSES, (rows,))


def exact() -> list[Tensor]:
    """The gradients of one process, computed by torch's own operators."""
    model, (x, target) = Model(), batch()
    return list(torch.autograd.grad(F.cross_entropy(model.head(model(x, target)), target), tuple(model.parameters())))


def sharded(mesh: DeviceMesh, head: bool = True, adds_up: bool = False, **options: Any) -> Model:
    model = Model(**options)
    for module in (model.backbone, *([model.head] if head else []), model):
        fully_shard(module, mesh=mesh)
        assert isinstance(module, FSDPModule)
        if adds_up:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def gradients(model: Model, loss: Loss) -> list[Tensor | None]:
    """The whole gradients after a step on this rank's rows."""
    x, target = (t[dist.get_rank() * ROWS :][:ROWS] for t in batch())
    loss(model, x, target).backward()
    found = [parameter.grad for parameter in model.parameters()]
    return [g.full_tensor() if isinstance(g, DTensor) else g for g in found]


def data_parallel_mesh(shape: tuple[int, ...]) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])


def shared(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """This rank's rows as a DTensor of all ranks' rows."""
    return DTensor.from_local(tensor, mesh, [Shard(0)] * mesh.ndim)


def whole(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)


def unsharded(model: Model, x: Tensor, target: Tensor) -> Tensor:
    hidden = model(x, target)
    model.head.unshard()  # type: ignore[operator]
    return loss_of(hidden, model.head, target)


def gathered(model: Model, x: Tensor, target: Tensor) -> Tensor:
    weight, bias = whole(model.head.weight), whole(model.head.bias)
    return linear_cross_entropy(model(x, target), weight, target, linear_bias=bias)


def of_dtensors(model: Model, x: Tensor, target: Tensor, **options: Any) -> Tensor:
    mesh = model.head.weight.device_mesh  # type: ignore[union-attr]
    return loss_of(shared(model(x, target), mesh), model.head, shared(target, mesh), **options).mean()


def from_logits(model: Model, x: Tensor, target: Tensor) -> Tensor:
    mesh = model.backbone.weight.device_mesh  # type: ignore[union-attr]
    logits = F.linear(model(x, target), torch.ones(CLASSES, FEATURES, dtype=torch.float64))
    return npu_ce_jit.npu_cross_entropy_loss(shared(logits, mesh), shared(target, mesh))[0]


def from_dtensor_logits(model: Model, x: Tensor, target: Tensor) -> Tensor:
    mesh = model.head.weight.device_mesh  # type: ignore[union-attr]
    logits = F.linear(shared(model(x, target), mesh), model.head.weight)
    return cross_entropy(logits, shared(target, mesh))  # type: ignore[return-value]


def of_frozen_backbone(model: Model, x: Tensor, target: Tensor) -> Tensor:
    mesh = model.head.weight.device_mesh  # type: ignore[union-attr]
    return loss_of(shared(model(x, target).detach(), mesh), model.head, shared(target, mesh))


def ways(mesh: DeviceMesh) -> Iterator[tuple[Model, Loss]]:
    for reduction in ("mean", "none"):
        yield sharded(mesh, head=False, reduction=reduction), Model.__call__
    yield sharded(mesh), unsharded
    if GLOO_AVERAGES:
        yield sharded(mesh), gathered


def check_ways(rank: int, mesh_shape: tuple[int, ...]) -> None:
    mesh, right = data_parallel_mesh(mesh_shape), exact()
    for model, loss in ways(mesh):
        torch.testing.assert_close(gradients(model, loss), right)
    # Only the head gets a gradient: that of all ranks' rows from the start, which is not reduced again.
    found = gradients(sharded(mesh), of_frozen_backbone)
    assert found[:2] == [None, None]
    torch.testing.assert_close(found[2:], right[2:])


def check_sums(rank: int) -> None:
    """Where fully_shard sums, gradients of DTensors are right without change."""
    mesh, right = init_device_mesh("cpu", (2,)), exact()
    for options in ({}, {"reduction": "none"}):
        model = sharded(mesh, adds_up=True)
        found = gradients(model, lambda m, x, y, options=options: of_dtensors(m, x, y, **options))
        torch.testing.assert_close(found, right)


def check_refusals(rank: int, mesh_shape: tuple[int, ...]) -> None:
    mesh = data_parallel_mesh(mesh_shape)
    head = r"; for the head, call the loss in the forward .*unshard\(\).*linear_weight\.full_tensor\(grad_placements=\["
    add_up = r"\. For the mean over all ranks' rows, call set_gradient_divide_factor" if CAN_ADD_UP else ""
    for loss, hint in (
        (of_dtensors, head),
        (lambda *a: of_dtensors(*a, reduction="none"), head),
        (from_logits, "own rows"),
        (from_dtensor_logits, "own rows"),
        (torch.compile(from_logits, backend="aot_eager"), "own rows"),
    ):
        said = rf"fully_shard averages \(input \[.*\): .* 1/{mesh.size()} of itself\. .*{hint}.*{add_up}"
        with pytest.raises((RuntimeError, torch._dynamo.exc.BackendCompilerFailed), match=said):
            gradients(sharded(mesh), loss)
    with torch.no_grad():  # the loss itself is right
        model, (x, target) = sharded(mesh), batch()
        own = slice(rank * ROWS, (rank + 1) * ROWS)
        loss = of_dtensors(model, x[own], target[own])
        one = Model()
        torch.testing.assert_close(loss.full_tensor(), F.cross_entropy(one.head(one(x, target)), target))


def check_mixed(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    apart = r"where fully_shard has taken the head apart, call the loss in the forward .* unshard\(\) .*"
    both = r"linear_weight\.full_tensor\(grad_placements=\[Partial\('avg'\)\]\) and linear_bias\.full_tensor"
    with pytest.raises(RuntimeError, match=f"to be DTensors.* got Tensor and DTensor; {apart}{both}"):
        gradients(sharded(mesh), lambda m, x, y: loss_of(m(x, y), m.head, y))
    with pytest.raises(RuntimeError, match=f"got Tensor and DTensor; {apart}{both}"):  # the head is a sharded module
        gradients(sharded(mesh, reduction="mean"), Model.__call__)
    with pytest.raises(RuntimeError, match=rf"{apart}pass linear_bias\.full_tensor"):
        gradients(
            sharded(mesh),
            lambda m, x, y: linear_cross_entropy(m(x, y), whole(m.head.weight), y, linear_bias=m.head.bias),
        )


def check_mixed_of_nobody(rank: int) -> None:
    """Without fully_shard, each message says how to make DTensors of the plain tensors, or plain ones of DTensors."""
    from npu_ce_jit import parallel

    mesh = init_device_mesh("cpu", (2,))
    x, target = batch()
    weight = distribute_tensor(torch.randn(CLASSES, FEATURES, dtype=torch.float64), mesh, [Shard(0)])
    with pytest.raises(RuntimeError, match=r"make DTensors of input, target too: .*distribute_tensor.*from_local"):
        linear_cross_entropy(x, weight, target)
    with pytest.raises(RuntimeError, match=r"make DTensors of input too: .*; or pass plain .* target\.full_tensor"):
        cross_entropy(x, distribute_tensor(target, mesh, [Replicate()]))
    with pytest.raises(RuntimeError, match=r"or DTensor\.from_local\(target, mesh, .* where each has its own part"):
        linear_cross_entropy(distribute_tensor(x, mesh, [Replicate()]), weight, target)
    with pytest.raises(
        RuntimeError, match=r"local_linear_weight to be .*, got a DTensor; pass local_linear_weight\.to_l"
    ):
        parallel.vocab_parallel_linear_cross_entropy(x, weight, target)
    with pytest.raises(
        RuntimeError, match=r"expected local_logits to be .*, got a DTensor; pass local_logits\.to_local"
    ):
        parallel.vocab_parallel_cross_entropy(distribute_tensor(x, mesh, [Shard(1)]), target % FEATURES)


def check_two_ranks(rank: int) -> None:
    check_mixed_of_nobody(rank)
    check_ways(rank, (2,))
    check_refusals(rank, (2,))
    check_mixed(rank)
    if CAN_ADD_UP:
        check_sums(rank)


def test_two_ranks_share_the_parameters():
    run_on_ranks(2, check_two_ranks)


def check_beside_a_vocabulary(rank: int) -> None:
    """fully_shard over one mesh dimension, the vocabulary over the other: nothing is reduced twice."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "vocabulary"))
    data, vocabulary = mesh["data"], mesh["vocabulary"]
    model, (x, target) = sharded(data, head=False), batch()
    right = exact()
    weight, bias = (distribute_tensor(p.detach(), vocabulary, [Shard(0)]) for p in Model().head.parameters())
    own = slice(data.get_local_rank() * 2 * ROWS, (data.get_local_rank() + 1) * 2 * ROWS)
    for placement in (Replicate(), Shard(0)):
        model.zero_grad()
        hidden = DTensor.from_local(model(x[own], target[own]), vocabulary, [Replicate()])
        classes = distribute_tensor(target[own], vocabulary, [Replicate()])
        hidden = hidden.redistribute(vocabulary, [placement])
        linear_cross_entropy(hidden, weight, classes, linear_bias=bias).backward()
        found = [p.grad.full_tensor() for p in model.backbone.parameters()]  # type: ignore[union-attr]
        torch.testing.assert_close(found, right[:2])


def check_four_ranks(rank: int) -> None:
    check_beside_a_vocabulary(rank)
    check_ways(rank, (2, 2))
    check_refusals(rank, (2, 2))


@pytest.mark.exhaustive
def test_four_ranks_of_two_kinds():
    run_on_ranks(4, check_four_ranks)
