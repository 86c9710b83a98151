# SPDX-License-Identifier: Apache-2.0
"""What the public functions do around the operator: shapes, fallbacks, autocast, the gradient in place, the module."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from shapes import logits, targets
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import npu_ce_jit
from npu_ce_jit import CrossEntropyLoss, CrossEntropyOutput, cross_entropy


@pytest.mark.parametrize("shape", [(6,), (3, 6), (3, 6, 4), (2, 6, 3, 5), (2, 6, 0), (0, 6, 4)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_rank_that_torch_takes(shape: tuple[int, ...], reduction: str, smoothing: float) -> None:
    x = torch.randn(shape)
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(6, rows)
    a, b, weight = x.clone().requires_grad_(), x.clone().requires_grad_(), torch.rand(6)
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    ours, theirs = cross_entropy(a, target, **options), F.cross_entropy(b, target, **options)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(a.grad, b.grad, equal_nan=True)
    output = cross_entropy(x, target, return_lse=True, return_argmax=True, return_entropy=True)
    classes = 1 if len(shape) > 1 else 0
    torch.testing.assert_close(output.lse, x.logsumexp(classes))
    assert output.argmax.shape == output.entropy.shape == rows
    assert torch.equal(output.argmax, x.argmax(classes) if x.numel() else torch.zeros(rows, dtype=torch.int64))


def test_the_tuple_holds_none_for_what_was_not_asked() -> None:
    x, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert isinstance(cross_entropy(x, target), Tensor)
    output = cross_entropy(x, target, return_argmax=True)
    assert isinstance(output, CrossEntropyOutput)
    assert output._fields == ("loss", "z_loss", "lse", "argmax", "entropy")
    assert [v is None for v in output] == [False, True, True, False, True]


def test_class_probabilities_fall_back_to_torch() -> None:
    x, target = torch.randn(3, 4, 5), torch.rand(3, 4, 5).softmax(1)
    assert torch.equal(cross_entropy(x, target, label_smoothing=0.2), F.cross_entropy(x, target, label_smoothing=0.2))
    with pytest.raises(RuntimeError, match="got class probabilities"):
        cross_entropy(x, target, z_loss=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_loss_dtype(dtype: torch.dtype) -> None:
    x, target = logits(20, 50, dtype).requires_grad_(), targets(20, 50)
    loss = cross_entropy(x, target, loss_dtype=torch.float32)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(x.detach().double(), target)
    assert abs(loss.item() - expected.item()) < 2e-6 * expected.item()
    loss.backward()
    assert x.grad.dtype == dtype


def test_autocast_gives_float32_as_torch_does() -> None:
    x, target = logits(4, 9, torch.bfloat16), targets(4, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.cross_entropy(x, target).dtype == torch.float32
        assert cross_entropy(x, target).dtype == torch.float32
        assert cross_entropy(x.double(), target).dtype == F.cross_entropy(x.double(), target).dtype == torch.float64
        assert cross_entropy(x, target, loss_dtype=torch.bfloat16).dtype == torch.bfloat16
        weight = torch.rand(9).bfloat16()
        torch.testing.assert_close(cross_entropy(x.float(), target, weight), F.cross_entropy(x.float(), target, weight))
        # The drop-in is torch_npu's, and that one is not autocast.
        assert npu_ce_jit.npu_cross_entropy_loss(x, target)[0].dtype == torch.bfloat16
    assert cross_entropy(x, target).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_gradient_lands_in_the_logits(dtype: torch.dtype) -> None:
    x, target = logits(6, 40, dtype), targets(6, 40, 0.2)
    fresh, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    cross_entropy(fresh, target).backward()
    version = leaf._version
    cross_entropy(leaf, target, inplace_backward=True).backward()
    assert torch.equal(leaf.grad, fresh.grad)
    assert leaf.grad.data_ptr() == leaf.data_ptr()
    assert leaf._version > version


def test_in_place_steps_accumulate_on_a_leaf() -> None:
    """The first gradient lies over the logits: a second one written there would take its place, not be added."""
    leaf, target = torch.zeros(1, 2, requires_grad=True), torch.tensor([0])
    cross_entropy(leaf, target, inplace_backward=True).backward()
    first = leaf.grad.clone()
    second = torch.func.grad(lambda x: F.cross_entropy(x, target))(leaf.detach().clone())
    cross_entropy(leaf, target, inplace_backward=True).backward()
    torch.testing.assert_close(leaf.grad, first + second)


def test_in_place_through_a_linear_layer() -> None:
    def train(inplace: bool) -> Tensor:
        torch.manual_seed(0)
        head, hidden = torch.nn.Linear(8, 30), torch.randn(5, 8, requires_grad=True)
        cross_entropy(head(hidden), targets(5, 30), inplace_backward=inplace).backward()
        return torch.cat([head.weight.grad.flatten(), head.bias.grad, hidden.grad.flatten()])

    assert torch.equal(train(True), train(False))


def test_in_place_refuses_what_it_cannot_do() -> None:
    target = targets(6, 8)
    with pytest.raises(RuntimeError, match="expected a contiguous input of shape"):
        cross_entropy(torch.randn(8, 6).t(), target, inplace_backward=True)
    with pytest.raises(RuntimeError, match="expected a contiguous input of shape"):
        cross_entropy(torch.randn(6, 8, 2), targets(6, 8)[:, None].expand(6, 2), inplace_backward=True)

    x = torch.randn(6, 8, requires_grad=True)
    loss = cross_entropy(x, target, inplace_backward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="expected one backward with inplace_backward=True, got a second"):
        loss.backward()

    hidden = torch.randn(6, 8, requires_grad=True) * 1
    loss = cross_entropy(hidden, target, inplace_backward=True)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_reader_of_the_overwritten_logits_is_told() -> None:
    hidden = torch.randn(6, 8, requires_grad=True)
    squashed = hidden.tanh()  # its backward reads its output, which ours overwrites
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cross_entropy(squashed, targets(6, 8), inplace_backward=True).backward()


def cross_entropy_in_place(x: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(x, target, inplace_backward=True)


def test_in_place_steps_aside() -> None:
    """create_graph, torch.func, checkpointing and saved-tensor hooks get a new tensor, and the logits stay."""
    x, target = torch.randn(6, 8), targets(6, 8)
    expected = torch.func.grad(lambda a: F.cross_entropy(a, target))(x)
    before = x.clone()

    leaf = x.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(leaf, target, inplace_backward=True), leaf, create_graph=True)
    torch.testing.assert_close(gradient, expected)
    assert gradient.requires_grad
    torch.testing.assert_close(torch.func.grad(lambda a: cross_entropy(a, target, inplace_backward=True))(x), expected)
    for reentrant in (True, False):
        checkpoint(cross_entropy_in_place, leaf, target, use_reentrant=reentrant).backward()
        torch.testing.assert_close(leaf.grad, expected)
        leaf.grad = None
    with torch.autograd.graph.save_on_cpu():
        cross_entropy(leaf, target, inplace_backward=True).backward()
    torch.testing.assert_close(leaf.grad, expected)
    assert torch.equal(x, before)


def test_the_module() -> None:
    x, target, weight = torch.randn(5, 7), targets(5, 7, 0.2), torch.rand(7)
    module = CrossEntropyLoss(weight, reduction="sum", label_smoothing=0.1, z_loss=0.01, softcap=9.0)
    expected = cross_entropy(x, target, weight, "sum", label_smoothing=0.1, z_loss=0.01, softcap=9.0)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x, target), expected)
    assert "z_loss=0.01" in repr(module)
    torch.testing.assert_close(CrossEntropyLoss()(x, target), torch.nn.CrossEntropyLoss()(x, target))
    with pytest.raises(TypeError):
        CrossEntropyLoss(zloss=0.1)
