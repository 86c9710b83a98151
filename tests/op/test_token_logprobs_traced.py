# SPDX-License-Identifier: Apache-2.0
"""`token_logprobs` under autocast, torch.compile, torch.export, torch.func, checkpointing and fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_token_logprobs import ALL, exact, targets_of, weighted
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from npu_ce_jit import TokenLogprobs, token_logprobs

KINDS = {"temperature": 0.6, "softcap": 5.0}


def of_all(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    return token_logprobs(logits[:, :-1], target, **KINDS, **ALL)  # type: ignore[return-value]


@pytest.fixture
def problem(device: torch.device) -> tuple[Tensor, Tensor]:
    logits = torch.randn(3, 6, 77)
    return logits.to(device), targets_of(logits[:, :-1]).to(device)


def expected_of(logits: Tensor, target: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    true = logits.detach().cpu().double().requires_grad_()
    values = exact(true[:, :-1], target.cpu(), **KINDS)
    weighted(values).backward()
    assert true.grad is not None
    return values, true.grad


def assert_exact(values: Any, gradient: Tensor, expected: tuple[tuple[Tensor, ...], Tensor]) -> None:
    for ours, truth in zip(values, expected[0], strict=True):
        torch.testing.assert_close(ours.detach().cpu().double(), truth.detach(), rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(gradient.cpu().double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_it_is_one_graph(problem, dynamic):
    torch._dynamo.reset()
    logits, target = problem
    compiled = torch.compile(of_all, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (3, 2):
        leaf = logits[:rows].detach().clone().requires_grad_()
        found = compiled(leaf, target[:rows])
        assert isinstance(found, TokenLogprobs)
        weighted(found).backward()
        assert_exact(found, leaf.grad, expected_of(leaf, target[:rows]))


def test_compiled_and_under_torch_func_ignored_rows_stay_0(problem):
    torch._dynamo.reset()
    logits, target = problem
    logits[:, :-1][target == -100] = torch.nan
    of_func = torch.func.grad(lambda x: sum(v.sum() for v in of_all(x, target)))(logits)
    assert of_func.cpu().isfinite().all()
    logits.requires_grad_()
    weighted(torch.compile(of_all, fullgraph=True, backend="aot_eager")(logits, target)).backward()
    assert logits.grad.cpu().isfinite().all()


class Model(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> TokenLogprobs:
        return of_all(logits, target)  # type: ignore[return-value]


@pytest.mark.parametrize("strict", [False, True])
def test_exported_it_is_registered_operators(problem, strict):
    logits, target = problem
    rows = torch.export.Dim("rows", min=2, max=64)
    shapes = {"logits": {0: rows}, "target": {0: rows}}
    program = torch.export.export(Model(), (logits, target), dynamic_shapes=shapes, strict=strict)
    ours = [node.target for node in program.graph.nodes if str(node.target).startswith("npu_ce_jit")]
    assert set(map(str, ours)) <= {"npu_ce_jit.cross_entropy.default", "npu_ce_jit._forward.default"}
    assert len(ours) == 2
    found = program.module()(logits[:2], target[:2])
    assert isinstance(found, TokenLogprobs)
    for values, truth in zip(found, expected_of(logits[:2], target[:2])[0], strict=True):
        torch.testing.assert_close(values.cpu().double(), truth.detach(), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("compiles", [False, True])
def test_torch_func(problem, compiles):
    torch._dynamo.reset()
    logits, target = problem
    factors = (1 + torch.arange(target.numel()) % 5).to(logits.device)

    def scalar(x: Tensor, y: Tensor) -> Tensor:
        return sum((v * factors[: v.numel()].view(v.shape)).sum() for v in of_all(x, y))

    values, gradient = expected_of(logits, target)
    of_grad = torch.func.grad(scalar)
    of_vmap = torch.vmap(torch.func.grad(lambda x, y: scalar(x[None], y[None])))
    if compiles:
        of_grad, of_vmap = (torch.compile(f, backend="aot_eager", fullgraph=True) for f in (of_grad, of_vmap))
    torch.testing.assert_close(of_grad(logits, target).cpu().double(), gradient, rtol=1e-5, atol=1e-5)
    for one, x, y in zip(of_vmap(logits, target), logits, target, strict=True):
        torch.testing.assert_close(one.cpu().double(), expected_of(x[None], y[None])[1][0], rtol=1e-5, atol=1e-5)
    for ours, truth in zip(torch.vmap(of_all, (1, 1), 1)(logits[None].mT.mT, target[None]), values, strict=True):
        torch.testing.assert_close(ours[0].cpu().double(), truth.detach(), rtol=1e-5, atol=1e-5)


def test_derivatives_of_every_order_and_mode():
    logits, target = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([[0, 4, -100]] * 2)
    checks = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(lambda x: tuple(of_all(x, target)), logits, check_forward_ad=True, **checks)
    assert torch.autograd.gradgradcheck(lambda x: tuple(of_all(x, target)), logits, **checks)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_it_is_the_same(problem, reentrant):
    logits, target = problem
    leaf = logits.detach().clone().requires_grad_()
    found = checkpoint(
        lambda x: token_logprobs((x * 1)[:, :-1], target, **KINDS, **ALL, inplace_backward=True),
        leaf,
        use_reentrant=reentrant,
    )
    weighted(found).backward()
    assert_exact(found, leaf.grad, expected_of(logits, target))


def test_autocast_changes_nothing(problem):
    logits, target = problem
    plain = of_all(logits.bfloat16(), target)
    with torch.autocast(logits.device.type, torch.bfloat16):
        found = of_all(logits.bfloat16(), target)
    for ours, without in zip(found, plain, strict=True):
        assert ours.dtype is torch.float32
        assert torch.equal(ours, without)


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_no_values_are_needed_for_shapes(kind):
    with torch.device("meta") if kind == "meta" else FakeTensorMode():
        logits = torch.empty(3, 6, 77, dtype=torch.bfloat16, requires_grad=True)
        target = torch.empty(3, 5, dtype=torch.int64)
        found = of_all(logits, target)
        for values in tree_leaves(found):
            assert (values.shape, values.dtype) == (target.shape, torch.float32)
        sum(v.sum() for v in found).backward()
        assert logits.grad.shape == logits.shape


def test_inference_mode_is_the_same(problem):
    logits, target = problem
    plain = of_all(logits, target)
    with torch.inference_mode():
        assert all(map(torch.equal, of_all(logits, target), plain))
