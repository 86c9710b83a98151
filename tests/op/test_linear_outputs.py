# SPDX-License-Identifier: Apache-2.0
"""The outputs of the loss from hidden states beside the loss: values, their joint gradients, every form."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.func as tf
import torch.nn.functional as F
from linear_outputs import ALL, DIFFERENTIABLE, skipping
from oracle import Options, truth
from shapes import DTYPES, ON_NPU, targets
from test_linear_cross_entropy import Layer, chunks_of, layer, ours, require_no_worse
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

from npu_ce_jit import CrossEntropyOutput, LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy
from npu_ce_jit.bench.timing import peak_allocated

MANY = Options("mean", 3, 0.1, 1e-2, 5.0, 1.7)


def directions(found: Any) -> list[Tensor]:
    """A random vector for each differentiable output, the same for every dtype and device."""
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(getattr(found, name).shape, generator=generator) for name in DIFFERENTIABLE]


def on_cpu(tensors: Any) -> list[Tensor]:
    return [t.detach().cpu() for t in tensors]


def values_and_gradients(leaves: Layer, found: Any) -> list[Tensor]:
    values = [getattr(found, name) for name in DIFFERENTIABLE]
    given = [d.to(v.device, v.dtype) for d, v in zip(directions(found), values, strict=True)]
    gradients = torch.autograd.grad(values, [t for t in leaves if t is not None], given)
    return on_cpu((*values, *gradients))


@pytest.mark.feature("lse, entropy, argmax and z-loss from hidden states")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("rows", [None, 5])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_values_and_gradients_of_all_of_them_together(
    reduction: str, rows: int | None, skip: bool, dtype: torch.dtype, device: torch.device
) -> None:
    case, options = layer((13, 7, 31), dtype), MANY._replace(reduction=reduction)
    target, weight = targets(13, 31, 0.3, options.ignore_index), torch.rand(31)
    results, argmax = [], []
    for name, where, of in (("ours", device, None), ("peer", device, None), ("truth", None, torch.float64)):
        leaves = case.to(where, of)
        found: Any
        if name == "ours":
            found = ours(leaves, target, weight, options=chunks_of(rows), skip_ignored=skip, **ALL, **options.as_dict())
            assert found.lse.dtype == found.entropy.dtype == (dtype if dtype is torch.float64 else torch.float32)
        else:
            found = truth(leaves.logits().cpu(), target, weight, options)
            found = skipping(found, target, options.ignore_index) if skip else found
        results.append(values_and_gradients(leaves, found))
        argmax.append(found.argmax.cpu())
    for result, peer, true in zip(*results, strict=True):
        assert result.shape == true.shape
        require_no_worse(result, peer, true)
    assert argmax[0].dtype == torch.int64
    assert torch.equal(argmax[0], argmax[1] if dtype.itemsize == 2 else argmax[2])


@pytest.mark.parametrize("asked", [{name: True} for name in ALL], ids=lambda asked: next(iter(asked)))
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_one_alone(asked: dict[str, bool], reduction: str, device: torch.device) -> None:
    """The other outputs are None, and the loss is as without any."""
    case, target = layer((11, 5, 17), torch.float32).to(device), targets(11, 17)
    options: dict[str, Any] = {"reduction": reduction, "z_loss": 0.1}
    found, plain = ours(case, target, **options, **asked), ours(case, target, **options)
    assert isinstance(found, CrossEntropyOutput)
    (name,) = asked
    assert [field for field, value in found._asdict().items() if value is None] == [
        f"{field}" for field in found._fields if field not in ("loss", name.removeprefix("return_"))
    ]
    torch.testing.assert_close(found.loss.cpu(), plain.cpu())
    of_logits = cross_entropy(case.logits(), target.to(device), **options, **asked)
    value, expected = on_cpu(getattr(of, name.removeprefix("return_")) for of in (found, of_logits))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (2, 3, 2), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_any_number_of_leading_dimensions(shape: tuple[int, ...], reduction: str, any_device: torch.device) -> None:
    x, w = (torch.randn(*of, 5).to(any_device).requires_grad_() for of in (shape, (9,)))
    y = torch.randint(9, shape).to(any_device)
    found = linear_cross_entropy(x, w, y, reduction=reduction, **ALL)
    assert found.lse.shape == found.entropy.shape == found.argmax.shape == shape
    logits = F.linear(x.double().cpu(), w.double().cpu())
    expected = F.cross_entropy(logits.reshape(-1, 9), y.cpu().reshape(-1), reduction=reduction)
    if reduction == "none":
        expected = expected.reshape(shape)
    torch.testing.assert_close(found.loss.cpu(), expected, check_dtype=False)
    torch.testing.assert_close(found.lse.cpu(), logits.logsumexp(-1), check_dtype=False)
    results = (on_cpu(torch.autograd.grad(loss.sum(), (x, w))) for loss in (found.loss, expected))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shape", [(4,), (3, 4)], ids=str)
def test_class_probabilities_of_any_number_of_leading_dimensions(shape: tuple[int, ...]) -> None:
    x, w, probabilities = torch.randn(*shape, 5), torch.randn(9, 5), torch.rand(*shape, 9).softmax(-1)
    expected = F.cross_entropy(F.linear(x, w).reshape(-1, 9), probabilities.reshape(-1, 9))
    torch.testing.assert_close(linear_cross_entropy(x, w, probabilities), expected)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("skip", [False, True])
def test_an_ignored_row_of_nan_spoils_nothing_but_itself(skip: bool, reduction: str, device: torch.device) -> None:
    case, target = layer((9, 5, 11), torch.float32), targets(9, 11)
    ignored = torch.tensor([0, 4, 5])
    case.input[ignored], target[ignored] = torch.nan, -100
    leaves = case.to(device)
    found = ours(leaves, target, reduction=reduction, z_loss=0.1, skip_ignored=skip, **ALL)
    counted = torch.ones(9, dtype=torch.bool).index_fill(0, ignored, False)
    assert found.loss.cpu().isfinite().all()
    assert found.lse.cpu().isfinite().tolist() == ([True] * 9 if skip else counted.tolist())
    assert (found.argmax.cpu() >= 0).tolist() == (counted.tolist() if skip else [True] * 9)
    parts = [found.loss.sum()]
    if skip:
        parts += [found.lse.sum(), found.entropy.sum()]
    gradients = on_cpu(torch.autograd.grad(sum(parts), list(leaves)))
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][ignored].any()


def test_every_row_ignored(device: torch.device) -> None:
    case, target = layer((4, 3, 5), torch.float32).to(device), torch.full((4,), -100)
    found = ours(case, target, reduction="none", skip_ignored=True, **ALL)
    assert [value.tolist() for value in found] == [[0] * 4, [0] * 4, [0] * 4, [-1] * 4, [0] * 4]
    for g in torch.autograd.grad(found.entropy.sum() + found.lse.sum(), list(case)):
        assert not g.cpu().any()
    reported = ours(case, target, reduction="none", return_lse=True)
    torch.testing.assert_close(reported.lse.cpu(), case.logits().cpu().logsumexp(1), rtol=1e-5, atol=1e-5)


@pytest.mark.feature("logits never whole")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype: torch.dtype, reduction: str) -> None:
    """Entropy and the others take a few numbers for each row: the bound is that of the loss alone."""
    rows, features, classes = 4096, 16, 8192
    case, target = layer((rows, features, classes), dtype, bias=False).to(), targets(rows, classes, 0.05)
    returned = case.input.nbytes + case.linear_weight.nbytes

    def step() -> None:
        found = ours(case, target, reduction=reduction, skip_ignored=True, **ALL)
        torch.autograd.grad((found.loss + found.entropy.mean()).sum(), case[:2])

    assert returned < peak_allocated(step) <= 2 * returned + 0.35 * rows * classes * dtype.itemsize


F64 = torch.float64


def loss_and_entropy(x: Tensor, w: Tensor, b: Tensor, target: Tensor) -> Tensor:
    found = linear_cross_entropy(
        x, w, target, linear_bias=b, reduction="none", label_smoothing=0.1, z_loss=0.3, softcap=3.0, **ALL
    )
    return found.loss * 2 + found.entropy.square() + found.lse * found.z_loss


def of_logits(x: Tensor, w: Tensor, b: Tensor, target: Tensor) -> Tensor:
    found = truth(F.linear(x, w, b), target, None, Options("none", -100, 0.1, 0.3, 3.0))
    return found.loss * 2 + found.entropy.square() + found.lse * found.z_loss


def operands() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    tensors = [torch.randn(shape, dtype=F64, requires_grad=True) for shape in ((5, 3), (7, 3), (7,))]
    return *tensors, torch.tensor([4, 0, -100, 2, 1])  # type: ignore[return-value]


def test_derivatives_of_every_kind() -> None:
    *layer_, target = operands()
    assert gradcheck(lambda *t: loss_and_entropy(*t, target), layer_, check_forward_ad=True)
    assert gradgradcheck(lambda *t: loss_and_entropy(*t, target), layer_)
    for transform in (
        lambda f: tf.grad(lambda x: f(x, *layer_[1:], target).sum())(layer_[0]),
        lambda f: tf.jacrev(lambda w: f(layer_[0], w, layer_[2], target))(layer_[1]),
        lambda f: tf.hessian(lambda x: f(x, *layer_[1:], target).sum())(layer_[0]),
    ):
        torch.testing.assert_close(transform(loss_and_entropy), transform(of_logits))
    batch = torch.randn(4, 5, 3, dtype=F64)
    found = tf.vmap(loss_and_entropy, (0, None, None, None))(batch, *layer_[1:], target)
    torch.testing.assert_close(found, torch.stack([of_logits(x, *layer_[1:], target) for x in batch]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", *([] if ON_NPU else ["inductor"])])
def test_compile_fullgraph(backend: str, device: torch.device) -> None:
    case, target = layer((9, 6, 17), torch.float32), targets(9, 17)

    def step(leaves: Layer, target: Tensor) -> list[Tensor]:
        found = linear_cross_entropy(
            leaves.input[None], leaves.linear_weight, target[None], linear_bias=leaves.linear_bias, **ALL
        )
        return [found.loss + found.entropy.mean(), found.lse, found.argmax]

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    results = []
    for form in (step, compiled):
        leaves = case.to(device)
        loss, *others = form(leaves, target.to(device))
        results.append(on_cpu([loss, *others, *torch.autograd.grad(loss, list(leaves))]))
    torch.testing.assert_close(*results)


def test_checkpoint_and_autocast(device: torch.device) -> None:
    case, target = layer((9, 6, 17), torch.float32), targets(9, 17).to(device)

    def step(x: Tensor, w: Tensor) -> Tensor:
        found = linear_cross_entropy(x, w, target, reduction="none", return_entropy=True, skip_ignored=True)
        return found.loss.mean() - 0.1 * found.entropy.mean()

    results = []
    for form in (step, lambda *t: checkpoint(step, *t, use_reentrant=False)):
        leaves = case.to(device)
        results.append(on_cpu(torch.autograd.grad(form(*leaves[:2]), leaves[:2])))
    torch.testing.assert_close(*results)
    leaves = case.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        found = ours(leaves, target, return_entropy=True)
    assert found.loss.dtype == found.entropy.dtype == torch.float32
    expected = ours(leaves, target, return_entropy=True)
    torch.testing.assert_close(found.entropy.cpu(), expected.entropy.cpu(), rtol=0.02, atol=0.02)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = LinearCrossEntropyLoss(6, 17, reduction="none", return_entropy=True, skip_ignored=True)

    def forward(self, hidden: Tensor, target: Tensor) -> CrossEntropyOutput:
        return self.head(hidden, target)


def test_a_module_and_its_export_for_any_number_of_rows(any_device: torch.device) -> None:
    model, rows = _Model().to(any_device), Dim("N", min=2)
    example = (torch.randn(5, 6).to(any_device), targets(5, 17).to(any_device))
    program = torch.export.export(model, example, dynamic_shapes=({0: rows}, {0: rows}))
    inputs = (torch.randn(11, 6).to(any_device), targets(11, 17, 0.3).to(any_device))
    found, expected = (on_cpu(form(*inputs)[::4]) for form in (program.module(), model))
    torch.testing.assert_close(found, expected)
    assert "linear_cross_entropy" in str(program.graph)


@pytest.mark.parametrize(("name", "order"), [*itertools.product(["lse", "entropy"], [1, 2])])
def test_gradients_of_one_output_follow_those_of_the_loss(name: str, order: int, device: torch.device) -> None:
    """Forward computes gradients of the loss only; another output's gradients are its own, in either order."""
    case, target = layer((7, 4, 9), torch.float32).to(device), targets(7, 9)
    found = ours(case, target, return_lse=True, return_entropy=True)
    wanted = list(case)
    steps = [found.loss, getattr(found, name).sum()][:: 1 if order == 1 else -1]
    first, second = (on_cpu(torch.autograd.grad(value, wanted, retain_graph=True)) for value in steps)
    both = on_cpu(torch.autograd.grad(sum(steps), wanted))
    torch.testing.assert_close([a + b for a, b in zip(first, second, strict=True)], both, rtol=1e-5, atol=1e-6)


@pytest.mark.feature("token accuracy and predicted tokens without logits")
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_token_accuracy_and_predicted_tokens(ignore_index: int, skip: bool, device: torch.device) -> None:
    case, target = layer((23, 5, 7), torch.float32).to(device), targets(23, 7, 0.3, ignore_index)
    options: dict[str, Any] = {"ignore_index": ignore_index, "return_argmax": True, "skip_ignored": skip}
    found, counted = ours(case, target, **options), target != ignore_index
    likely = case.logits().detach().cpu().argmax(1)
    classes = target.to(device)
    assert found.predicted_tokens(classes, ignore_index).cpu().tolist() == torch.where(counted, likely, -1).tolist()
    accuracy = found.token_accuracy(classes, ignore_index)
    assert accuracy.dtype == torch.float32
    assert accuracy.item() == pytest.approx((likely == target)[counted].double().mean().item())
    with pytest.raises(RuntimeError, match="pass return_argmax=True"):
        ours(case, target, return_lse=True).token_accuracy(classes)
