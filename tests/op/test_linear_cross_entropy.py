# SPDX-License-Identifier: Apache-2.0
"""The loss from hidden states: numbers, gradients and memory, against the textbook formula in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from oracle import Options, truth
from rounding import require_no_worse
from shapes import DTYPES, ON_NPU, logits, targets
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from npu_ce_jit import linear_cross_entropy
from npu_ce_jit.bench.timing import peak_allocated
from npu_ce_jit.torch_compat import LinearCrossEntropyOptions

# (N, in_features, C): all 1, one class, primes, one more than a block of 256 classes that was widened.
SHAPES = [(1, 1, 1), (5, 3, 1), (1, 4, 7), (13, 7, 31), (17, 64, 65), (7, 4201, 257)]


class Layer(NamedTuple):
    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Layer:
        """New leaves, on the device and in the dtype."""
        return Layer(*(None if t is None else t.detach().to(device, dtype, copy=True).requires_grad_() for t in self))

    def logits(self) -> Tensor:
        return F.linear(*self)

    def gradients(self, loss: Tensor, grad_loss: Tensor) -> list[Tensor]:
        leaves = [t for t in self if t is not None]
        return [g.cpu() for g in torch.autograd.grad(loss, leaves, grad_loss.to(loss.device, loss.dtype))]


def layer(shape: tuple[int, int, int], dtype: torch.dtype, bias: bool = True) -> Layer:
    rows, features, classes = shape
    weight = logits(classes, features, dtype, scale=3 / features**0.5)
    return Layer(logits(rows, features, dtype, scale=1.0), weight, logits(1, classes, dtype)[0] if bias else None)


def chunks_of(rows: int | None) -> LinearCrossEntropyOptions | None:
    return None if rows is None else LinearCrossEntropyOptions(batch_chunk_size=rows)


def ours(on: Layer, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
    bias, device = on.linear_bias, on.input.device
    weight = None if weight is None else weight.to(device)
    return linear_cross_entropy(
        on.input, on.linear_weight, target.to(device), linear_bias=bias, weight=weight, **options
    )


def check(
    case: Layer, target: Tensor, weight: Tensor | None, options: Options, device: torch.device, rows: int | None = None
) -> None:
    """Checks loss and gradients in the case's dtype; the peer is F.linear and the formula in that dtype."""
    results = []
    # The peer multiplies on the same device, whose order of additions is its own.
    for name, where, dtype in (("ours", device, None), ("peer", device, None), ("truth", None, torch.float64)):
        leaves = case.to(where, dtype)
        if name == "ours":
            loss = ours(leaves, target, weight, options=chunks_of(rows), **options.as_dict())
        else:
            loss = truth(leaves.logits().cpu(), target, weight, options).loss
        generator = torch.Generator().manual_seed(3)
        grad_loss = torch.rand(loss.shape, generator=generator).to(case.input.dtype)
        results.append([loss.detach().cpu(), *leaves.gradients(loss, grad_loss)])
    for result, peer, true in zip(*results, strict=True):
        assert result.dtype == peer.dtype
        assert result.shape == true.shape
        require_no_worse(result, peer, true)


@pytest.mark.feature("loss from hidden states")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_loss_and_gradients(
    shape: tuple[int, int, int], dtype: torch.dtype, reduction: str, device: torch.device
) -> None:
    check(layer(shape, dtype), targets(shape[0], shape[2]), None, Options(reduction), device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [None, 1, 5, 12, 13, 14])
@pytest.mark.parametrize(
    "options",
    [
        Options(reduction, ignore_index, smoothing, z_loss, softcap, scale)
        for reduction, (ignore_index, smoothing, z_loss, softcap, scale) in itertools.product(
            ["none", "mean", "sum"], [(3, 0.1, 1e-3, None, 1.0), (-1, 1.0, 0.0, 5.0, 1.7), (-100, 0.0, 0.2, None, 0.3)]
        )
    ],
    ids=lambda o: "-".join(str(v) for v in o),
)
def test_every_option_in_chunks_of_any_size(
    options: Options, rows: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    case, target = layer((13, 7, 31), dtype, bias=rows != 5), targets(13, 31, 0.3, options.ignore_index)
    check(case, target, torch.rand(31), options, device, rows)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("rows", [0, 4])
def test_no_rows_and_every_row_ignored(rows: int, reduction: str, device: torch.device) -> None:
    case, target = layer((rows, 3, 5), torch.float32).to(device), torch.full((rows,), -100)
    loss = ours(case, target, reduction=reduction, label_smoothing=0.1, z_loss=0.1)
    expected = F.cross_entropy(torch.zeros(rows, 5), target, reduction=reduction)
    torch.testing.assert_close(loss.cpu(), expected, equal_nan=True)
    for gradient in case.gradients(loss, torch.ones_like(loss)):
        assert not gradient.any()
    ours(layer((1, 3, 5), torch.float32).to(device), targets(1, 5))  # on an NPU, a test must launch a kernel


def test_an_ignored_row_takes_part_in_nothing(device: torch.device) -> None:
    """Not even in the products: its input may be NaN, and multiplying by 0 would keep the NaN."""
    case, target = layer((9, 5, 11), torch.float32), targets(9, 11)
    ignored = torch.tensor([0, 4, 5])
    case.input[ignored], target[ignored] = torch.nan, -100
    for reduction in ("none", "mean"):
        leaves = case.to(device)
        loss = ours(leaves, target, reduction=reduction)
        gradients = leaves.gradients(loss, torch.ones_like(loss))
        assert all(tensor.isfinite().all() for tensor in (loss.cpu(), *gradients))
        assert not gradients[0][ignored].any()
    if not ON_NPU:
        with torch.profiler.profile(record_shapes=True) as profile:
            ours(case.to(), target)
        assert {tuple(e.input_shapes[1]) for e in profile.events() if e.name == "aten::addmm"} == {(6, 5)}


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous().t(),
    "every other": lambda t: torch.stack((t, t), 1).flatten(0, 1)[::2],
    "spread": lambda t: t[:1].expand(t.shape),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    dense, target = layer((11, 6, 13), dtype).to(device), targets(11, 13)
    strided = Layer(LAYOUTS[layout](dense.input), LAYOUTS[layout](dense.linear_weight), dense.linear_bias)
    copied = Layer(*(t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in strided))
    assert torch.equal(ours(strided, target.int()).cpu(), ours(copied, target).cpu())
    results = []
    for form in (strided, Layer(*(t.contiguous() for t in strided))):
        loss = ours(form, target, reduction="sum")
        results.append(dense.gradients(loss, torch.ones_like(loss)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("needed", [s for s in itertools.product([False, True], repeat=3) if any(s)], ids=str)
def test_some_need_gradients(needed: tuple[bool, ...], reduction: str, device: torch.device) -> None:
    case, target = layer((6, 4, 9), torch.float32), targets(6, 9)
    leaves, all_leaves = case.to(device), case.to(device)
    for tensor, asked in zip(leaves, needed, strict=True):
        tensor.requires_grad_(asked)
    ours(leaves, target, reduction=reduction).sum().backward()
    ours(all_leaves, target, reduction=reduction).sum().backward()
    for tensor, other, asked in zip(leaves, all_leaves, needed, strict=True):
        assert (tensor.grad is not None) == asked
        if asked:
            assert torch.equal(tensor.grad.cpu(), other.grad.cpu())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_graph_that_is_kept_gives_the_same_gradients_again(reduction: str, device: torch.device) -> None:
    leaves, target = layer((6, 4, 9), torch.float32).to(device), targets(6, 9)
    loss = ours(leaves, target, reduction=reduction).sum() * 3
    wanted = list(leaves)
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, wanted[1], retain_graph=True)
    third = torch.autograd.grad(loss, wanted)
    for a, b, c in zip(first, kept, third, strict=True):
        assert torch.equal(a.cpu(), b.cpu())
        assert torch.equal(a.cpu(), c.cpu())
    assert torch.equal(second[0].cpu(), first[1].cpu())
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, wanted)


def test_a_weight_that_was_changed_since_is_noticed(device: torch.device) -> None:
    leaves, target = layer((6, 4, 9), torch.float32).to(device), targets(6, 9)
    for reduction in ("mean", "none"):
        loss = ours(leaves, target, reduction=reduction).sum()
        with torch.no_grad():
            leaves.linear_weight.mul_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_scaling_the_loss_saves_what_would_vanish(dtype: torch.dtype, device: torch.device) -> None:
    """Without scaling, most gradients of a mean over these rows are below float16's smallest number."""
    case, target, scale = layer((1024, 5, 300), dtype), targets(1024, 300), 2.0**16
    case = Layer(case.input * 2**-12, case.linear_weight, None)
    leaves, exact = case.to(device), case.to(dtype=torch.float64)
    loss = ours(leaves, target, loss_dtype=torch.float32)
    true = F.cross_entropy(exact.logits(), target)
    (_, gradient), (_, expected) = (
        c.gradients(value * scale, torch.ones(())) for c, value in ((leaves, loss), (exact, true))
    )
    error = (gradient.double() - expected).abs()
    assert error.max() <= 0.02 * expected.abs().max()
    assert (error.square().mean() / expected.square().mean()).sqrt() <= 0.01


@pytest.mark.feature("logits never whole")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype: torch.dtype, reduction: str) -> None:
    """Beside the inputs and the returned gradients: at most 0.35 of the logits."""
    rows, features, classes = 4096, 16, 8192  # few, since a CPU may multiply bfloat16 slowly
    case, target = layer((rows, features, classes), dtype, bias=False).to(), targets(rows, classes, 0.05)
    returned = case.input.nbytes + case.linear_weight.nbytes
    peak = peak_allocated(lambda: torch.autograd.grad(ours(case, target, reduction=reduction).sum(), case[:2]))
    assert returned < peak <= returned + 0.35 * rows * classes * dtype.itemsize
    with_logits = peak_allocated(lambda: torch.autograd.grad(F.cross_entropy(case.logits(), target), case[:2]))
    assert with_logits >= rows * classes * dtype.itemsize  # checks that the measurement counts


def test_autocast_is_that_of_linear_and_cross_entropy(device: torch.device) -> None:
    case, target = layer((9, 6, 17), torch.float32).to(device), targets(9, 17)
    with torch.autocast(device.type, torch.bfloat16):
        loss = ours(case, target)
        assert ours(case, target, loss_dtype=torch.bfloat16).dtype == torch.bfloat16
    reference = case.to("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(reference.logits(), target)
    assert loss.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(loss.cpu(), expected, rtol=0.02, atol=0.01)
    results = (c.gradients(value, torch.ones(())) for c, value in ((case, loss), (reference, expected)))
    torch.testing.assert_close(*results, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool, device: torch.device) -> None:
    case, target = layer((9, 6, 17), torch.float32).to(device), targets(9, 17)
    loss = ours(case, target)
    expected = case.gradients(loss, torch.ones(()))
    checkpoint(ours, case.to(device), target, use_reentrant=False).backward()
    leaves = case.to(device)
    checkpoint(lambda *parts: ours(Layer(*parts), target), *leaves, use_reentrant=reentrant).backward()
    for tensor, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(tensor.grad.cpu(), gradient)
