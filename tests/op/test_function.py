# SPDX-License-Identifier: Apache-2.0
"""The public functions around the operator: shapes, fallbacks, autocast, the gradient in place, the module."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from shapes import DTYPES, logits, targets
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import npu_ce_jit
from npu_ce_jit import CrossEntropyLoss, CrossEntropyOutput, cross_entropy


@pytest.mark.feature("logits [C] and [N, C, d1, ...]")
@pytest.mark.parametrize("shape", [(6,), (3, 6), (3, 6, 4), (2, 6, 3, 5), (2, 6, 0), (0, 6, 4)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_rank_that_torch_takes(
    shape: tuple[int, ...], reduction: str, smoothing: float, device: torch.device
) -> None:
    x = torch.randn(shape)
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(6, rows)
    a, b, weight = x.to(device, copy=True).requires_grad_(), x.clone().requires_grad_(), torch.rand(6)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    ours = cross_entropy(a, target.to(device), weight.to(device), **options)
    theirs = F.cross_entropy(b, target, weight, **options)
    torch.testing.assert_close(ours.cpu(), theirs, equal_nan=True)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(a.grad.cpu(), b.grad, equal_nan=True)
    output = cross_entropy(a, target.to(device), return_lse=True, return_argmax=True, return_entropy=True)
    classes = 1 if len(shape) > 1 else 0
    torch.testing.assert_close(output.lse.cpu(), b.logsumexp(classes))
    assert output.argmax.shape == output.entropy.shape == rows
    assert torch.equal(output.argmax.cpu(), x.argmax(classes) if x.numel() else torch.zeros(rows, dtype=torch.int64))


def test_the_tuple_holds_none_for_what_was_not_asked(device: torch.device) -> None:
    x, target = torch.randn(3, 4).to(device), torch.tensor([0, 1, 2]).to(device)
    assert isinstance(cross_entropy(x, target), Tensor)
    output = cross_entropy(x, target, return_argmax=True)
    assert isinstance(output, CrossEntropyOutput)
    assert output._fields == ("loss", "z_loss", "lse", "argmax", "entropy")
    assert [v is None for v in output] == [False, True, True, False, True]


@pytest.mark.feature("class probabilities as targets")
def test_class_probabilities_fall_back_to_torch() -> None:
    x, target = torch.randn(3, 4, 5), torch.rand(3, 4, 5).softmax(1)
    assert torch.equal(cross_entropy(x, target, label_smoothing=0.2), F.cross_entropy(x, target, label_smoothing=0.2))
    with pytest.raises(RuntimeError, match="got class probabilities"):
        cross_entropy(x, target, z_loss=0.1)


@pytest.mark.feature("float32 loss from half logits")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_loss_dtype(dtype: torch.dtype, device: torch.device) -> None:
    x, target = logits(20, 50, dtype).requires_grad_(), targets(20, 50)
    loss = cross_entropy(x.to(device), target.to(device), loss_dtype=torch.float32)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(x.detach().double(), target)
    assert abs(loss.item() - expected.item()) < 2e-6 * expected.item()
    loss.backward()
    assert x.grad.dtype == dtype


def test_autocast_gives_float32_as_torch_does(device: torch.device) -> None:
    x, target = logits(4, 9, torch.bfloat16), targets(4, 9)
    on_device, there = x.to(device), target.to(device)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast(device.type, torch.bfloat16):
        assert F.cross_entropy(x, target).dtype == torch.float32
        assert cross_entropy(on_device, there).dtype == torch.float32
        assert cross_entropy(on_device, there, loss_dtype=torch.bfloat16).dtype == torch.bfloat16
        weight = torch.rand(9).bfloat16()
        ours = cross_entropy(on_device.float(), there, weight.to(device))
        torch.testing.assert_close(ours.cpu(), F.cross_entropy(x.float(), target, weight))
        # torch_npu's operator is not autocast, so the drop-in is not either.
        assert npu_ce_jit.npu_cross_entropy_loss(on_device, there)[0].dtype == torch.bfloat16
    assert cross_entropy(on_device, there).dtype == torch.bfloat16


def test_autocast_leaves_float64_alone() -> None:
    x, target = logits(4, 9, torch.float64), targets(4, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert cross_entropy(x, target).dtype == F.cross_entropy(x, target).dtype == torch.float64


@pytest.mark.feature("gradient written over the logits")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_lands_in_the_logits(dtype: torch.dtype, device: torch.device) -> None:
    x, target = logits(6, 40, dtype).to(device), targets(6, 40, 0.2).to(device)
    fresh, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    cross_entropy(fresh, target).backward()
    version = leaf._version
    cross_entropy(leaf, target, inplace_backward=True).backward()
    assert torch.equal(leaf.grad.cpu(), fresh.grad.cpu())
    assert leaf.grad.data_ptr() == leaf.data_ptr()
    assert leaf._version > version


def test_in_place_steps_accumulate_on_a_leaf(device: torch.device) -> None:
    """The first gradient shares the logits' memory: a second one written there would replace it."""
    leaf, target = torch.zeros(1, 2).to(device).requires_grad_(), torch.tensor([0])
    cross_entropy(leaf, target.to(device), inplace_backward=True).backward()
    first = leaf.grad.cpu().clone()
    second = torch.func.grad(lambda x: F.cross_entropy(x, target))(leaf.detach().cpu().clone())
    cross_entropy(leaf, target.to(device), inplace_backward=True).backward()
    torch.testing.assert_close(leaf.grad.cpu(), first + second)


def test_in_place_through_a_linear_layer(device: torch.device) -> None:
    def train(inplace: bool) -> Tensor:
        torch.manual_seed(0)
        head, hidden = torch.nn.Linear(8, 30).to(device), torch.randn(5, 8).to(device).requires_grad_()
        cross_entropy(head(hidden), targets(5, 30).to(device), inplace_backward=inplace).backward()
        gradients = head.weight.grad, head.bias.grad, hidden.grad
        return torch.cat([gradient.cpu().flatten() for gradient in gradients])

    assert torch.equal(train(True), train(False))


def test_in_place_refuses_what_it_cannot_do(device: torch.device) -> None:
    target = targets(6, 8).to(device)
    with pytest.raises(RuntimeError, match="expected a contiguous input of shape"):
        cross_entropy(torch.randn(8, 6).to(device).t(), target, inplace_backward=True)
    with pytest.raises(RuntimeError, match="expected a contiguous input of shape"):
        cross_entropy(torch.randn(6, 8, 2).to(device), target[:, None].expand(6, 2), inplace_backward=True)

    x = torch.randn(6, 8).to(device).requires_grad_()
    loss = cross_entropy(x, target, inplace_backward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="expected one backward with inplace_backward=True, got a second"):
        loss.backward()

    hidden = torch.randn(6, 8).to(device).requires_grad_() * 1
    loss = cross_entropy(hidden, target, inplace_backward=True)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_reader_of_the_overwritten_logits_is_told(device: torch.device) -> None:
    hidden = torch.randn(6, 8).to(device).requires_grad_() * 1
    squared = hidden * hidden  # its backward reads the logits that ours overwrites
    loss = cross_entropy(hidden, targets(6, 8).to(device), inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + squared.sum()).backward()


def cross_entropy_in_place(x: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(x, target, inplace_backward=True)


def test_in_place_steps_aside(device: torch.device) -> None:
    """create_graph, torch.func, checkpointing and saved-tensor hooks get a new gradient tensor; the logits stay."""
    before, target = torch.randn(6, 8), targets(6, 8)
    expected = torch.func.grad(lambda a: F.cross_entropy(a, target))(before)
    x, target = before.to(device, copy=True), target.to(device)

    leaf = x.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy_in_place(leaf, target), leaf, create_graph=True)
    torch.testing.assert_close(gradient.cpu(), expected)
    assert gradient.requires_grad
    torch.testing.assert_close(torch.func.grad(cross_entropy_in_place)(x, target).cpu(), expected)
    for reentrant in (True, False):
        checkpoint(cross_entropy_in_place, leaf, target, use_reentrant=reentrant).backward()
        torch.testing.assert_close(leaf.grad.cpu(), expected)
        leaf.grad = None
    with torch.autograd.graph.save_on_cpu():
        cross_entropy_in_place(leaf, target).backward()
    torch.testing.assert_close(leaf.grad.cpu(), expected)
    assert torch.equal(x.cpu(), before)


@pytest.mark.feature("deepcopy and pickle of modules")
def test_the_module(device: torch.device) -> None:
    x, target, weight = torch.randn(5, 7), targets(5, 7, 0.2), torch.rand(7)
    on_device, there = x.to(device), target.to(device)
    options = {"reduction": "sum", "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 9.0}
    module = CrossEntropyLoss(weight, **options)
    expected = cross_entropy(on_device, there, weight.to(device), **options).cpu()
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin.to(device)(on_device, there).cpu(), expected)
    assert "z_loss=0.01" in repr(module)
    torch.testing.assert_close(CrossEntropyLoss()(on_device, there).cpu(), torch.nn.CrossEntropyLoss()(x, target))
    with pytest.raises(TypeError):
        CrossEntropyLoss(zloss=0.1)
