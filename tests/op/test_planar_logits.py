# SPDX-License-Identifier: Apache-2.0
"""Logits [N, C, d1, ...] with contiguous positions: read in place, with F.cross_entropy's results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import npu_ce_jit

IGNORE = 255
# No element, one, 7 x 7 positions, more than a tile's 512, one and three dimensions of positions.
SHAPES = [(0, 3, 4, 4), (2, 3, 0, 4), (1, 1, 1, 1), (3, 1, 5, 3), (2, 19, 7, 7), (1, 21, 33, 31), (4, 6, 11)]
SHAPES += [(2, 5, 3, 4, 7), (2, 9, 1, 1), (16, 3, 2)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum", "ignore_index": IGNORE},
    "none": {"reduction": "none", "ignore_index": IGNORE, "label_smoothing": 0.1},
    "weighted": {"weighted": True, "label_smoothing": 0.2, "ignore_index": IGNORE},
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    logits = torch.randn(shape, dtype=torch.float64).mul(3).to(dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    target[torch.rand(target.shape) < 0.2] = IGNORE
    return logits, target


def gradient_of(loss: Callable[..., Tensor], logits: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    value = loss(logits, target, **options)
    scale = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    return value, torch.autograd.grad((value * scale).sum(), logits)[0]


class Operators(TorchDispatchMode):
    """Records the names of the operators that run below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "every other image": lambda x: x.repeat_interleave(2, 0)[::2],
    "some of the classes": lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
    "classes side by side": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "positions apart": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "one image for all": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_loss_and_gradient_are_those_of_torch(dtype: torch.dtype, layout: str) -> None:
    for shape in SHAPES:
        for name, options in OPTIONS.items():
            logits, target = drawn(shape, dtype)
            if layout == "one image for all" and shape[0] == 0:
                continue
            if name == "plain":
                target = target.clamp(max=shape[1] - 1)
            weight = torch.linspace(0.5, 2, shape[1], dtype=torch.float64) if "weighted" in options else None
            others = {key: value for key, value in options.items() if key != "weighted"}
            own = LAYOUTS[layout](logits).detach().requires_grad_()
            exact = own.detach().double().requires_grad_()
            expected = gradient_of(F.cross_entropy, exact, target, weight=weight, **others)
            own_weight = None if weight is None else weight.to(dtype)
            got = gradient_of(npu_ce_jit.cross_entropy, own, target, weight=own_weight, **others)
            limit = TOLERANCE[dtype]
            for ours, true in zip(got, expected, strict=True):
                assert ours.shape == true.shape, (shape, name)
                torch.testing.assert_close(
                    ours.double(), true, rtol=limit, atol=limit, equal_nan=True, msg=f"{shape} {name}"
                )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_everything_that_can_be_returned_has_the_targets_shape(reduction: str) -> None:
    logits, target = drawn((2, 7, 5, 9))
    rows, flat = logits.movedim(1, -1).reshape(-1, 7), target.reshape(-1)
    options: dict[str, Any] = {"reduction": reduction, "ignore_index": IGNORE, "z_loss": 1e-3, "softcap": 4.0}
    asked = {f"return_{name}": True for name in ("z_loss", "lse", "argmax", "entropy")}
    got = npu_ce_jit.cross_entropy(logits, target, **options, **asked)
    expected = npu_ce_jit.cross_entropy(rows, flat, **options, **asked)
    for name, ours, true in zip(got._fields, got, expected, strict=True):
        assert ours is not None and true is not None
        assert ours.shape == (target.shape if true.dim() else ()), name
        torch.testing.assert_close(ours.reshape(true.shape), true, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 5, 8, 9), (1, 5, 8, 9), (2, 5, 30), (2, 5, 2, 3, 4)])
def test_nothing_is_copied_and_the_gradient_lies_as_the_logits_do(shape: tuple[int, ...]) -> None:
    logits, target = drawn(shape, torch.float32)
    logits.requires_grad_()
    with Operators() as seen:
        loss = npu_ce_jit.cross_entropy(logits, target, ignore_index=IGNORE)
        (gradient,) = torch.autograd.grad(loss, logits)
    copies = [name for name in seen.names if any(word in name for word in ("clone", "copy", "contiguous"))]
    assert not copies, seen.names
    assert gradient.is_contiguous() and gradient.stride() == logits.stride()


def test_channels_last_is_read_as_rows() -> None:
    logits, target = drawn((2, 5, 8, 9), torch.float32)
    logits = logits.to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(npu_ce_jit.cross_entropy(logits, target, ignore_index=IGNORE), logits)
    assert gradient.stride() == logits.stride()


@pytest.mark.parametrize("fake", ["meta", "fake"])
def test_a_fake_gradient_has_the_strides_of_the_real_one(fake: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    logits, target = drawn((2, 5, 8, 9), torch.float32)
    for layout in ("contiguous", "classes side by side", "some of the classes"):
        own = LAYOUTS[layout](logits).detach().requires_grad_()
        real = gradient_of(npu_ce_jit.cross_entropy, own, target, ignore_index=IGNORE)[1]
        if fake == "meta":
            traced = own.detach().to("meta").requires_grad_(), target.to("meta")
            (gradient,) = torch.autograd.grad(npu_ce_jit.cross_entropy(*traced, ignore_index=IGNORE), traced[0])
        else:
            with FakeTensorMode() as mode:
                traced = mode.from_tensor(own), mode.from_tensor(target)
                (gradient,) = torch.autograd.grad(npu_ce_jit.cross_entropy(*traced, ignore_index=IGNORE), traced[0])
        assert gradient.stride() == real.stride(), layout


def test_a_compiled_step_is_one_graph_with_the_same_gradient() -> None:
    def step(logits: Tensor, target: Tensor) -> Tensor:
        return npu_ce_jit.cross_entropy(logits * 2, target, ignore_index=IGNORE)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for shape in ((2, 5, 8, 9), (3, 5, 6, 11)):
        logits, target = drawn(shape, torch.float32)
        logits.requires_grad_()
        expected, got = (gradient_of(call, logits, target) for call in (step, compiled))
        for ours, true in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, true)
            assert ours.stride() == true.stride()


def test_an_exported_program_has_one_node_and_any_size() -> None:
    class Loss(torch.nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return npu_ce_jit.cross_entropy(logits, target, ignore_index=IGNORE)

    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    of_target = {0: sizes[0], 1: sizes[2], 2: sizes[3]}
    logits, target = drawn((2, 5, 8, 9), torch.float32)
    program = torch.export.export(Loss(), (logits, target), dynamic_shapes={"logits": sizes, "target": of_target})
    nodes = [str(node.target) for node in program.graph.nodes if "npu_ce_jit" in str(node.target)]
    assert nodes == ["npu_ce_jit.cross_entropy.default"]
    logits, target = drawn((3, 5, 4, 6), torch.float32)
    expected = F.cross_entropy(logits, target, ignore_index=IGNORE)
    torch.testing.assert_close(program.module()(logits, target), expected)
    plain = program.run_decompositions(npu_ce_jit.decompositions())
    assert not any("npu_ce_jit" in str(node.target) for node in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(logits, target), expected)


def test_every_derivative() -> None:
    logits, target = drawn((2, 3, 2, 4))
    logits.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        options: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 5.0, "return_entropy": True}
        out = npu_ce_jit.cross_entropy(x, target, ignore_index=IGNORE, reduction="none", **options)
        assert out.entropy is not None
        return out.loss.sum() + (out.loss * out.entropy).sum()

    assert torch.autograd.gradcheck(loss, logits, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, logits)
    hessian = torch.func.hessian(loss)(logits.detach()).reshape(logits.numel(), -1)
    by_reverse = torch.autograd.functional.hessian(loss, logits.detach()).reshape(logits.numel(), -1)
    torch.testing.assert_close(hessian, by_reverse)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vmap_is_a_loop(reduction: str) -> None:
    logits, target = drawn((3, 2, 5, 4, 6))[0], drawn((6, 5, 4, 6))[1].reshape(3, 2, 4, 6)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return npu_ce_jit.cross_entropy(x, y, ignore_index=IGNORE, reduction=reduction)

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        return torch.func.grad(lambda x: loss(x, y).square().sum())(x)

    for function in (loss, gradient):
        one_by_one = torch.stack([function(x, y) for x, y in zip(logits, target, strict=True)])
        torch.testing.assert_close(torch.vmap(function)(logits, target), one_by_one)


def test_the_reference_agrees() -> None:
    from npu_ce_jit.op import reference

    logits, target = drawn((2, 5, 20))
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    terms = (1, IGNORE, 0.1, 1e-3, 6.0, 0.7)
    flat = target.reshape(-1)
    everything = 1 | 4 | 8 | 16
    operators = torch.ops.npu_ce_jit
    got = operators._forward(logits, flat, weight, *terms, everything, torch.float64)
    expected = reference.forward(logits, flat, weight, *terms, everything, torch.float64)
    for ours, true in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, true)
    *_, entropy, row_stats, denominators = got
    one, of_rows = torch.ones((), dtype=torch.float64), torch.linspace(-1, 1, 40, dtype=torch.float64)
    gradients = (one, one / 2, None, of_rows, of_rows.flip(0))
    saved = (logits, flat, weight, row_stats, entropy, denominators)
    torch.testing.assert_close(
        operators._backward(*gradients, *saved, *terms), reference.backward(*gradients, *saved, *terms)
    )


def test_wrong_targets_are_refused() -> None:
    logits, target = drawn((2, 5, 8, 9), torch.float32)
    with pytest.raises(IndexError, match=r"target\[\d+\] = 255 is out of bounds for 5 classes"):
        npu_ce_jit.cross_entropy(logits, target)
    with pytest.raises(ValueError, match="batch_size"):
        torch.ops.npu_ce_jit.cross_entropy(logits.flatten(2), target.reshape(-1)[1:])
    with pytest.raises(RuntimeError, match=r"\[N, C\]"):
        torch.ops.npu_ce_jit.npu_cross_entropy_loss(logits.flatten(2), target.reshape(-1)[:2])
