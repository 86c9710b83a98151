# SPDX-License-Identifier: Apache-2.0
"""`token_logprobs` against the float64 formula: strides, dtypes, a row's bits, memory, in place, errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from collectives import Watched
from shapes import DTYPES, ON_NPU
from torch import Tensor

from npu_ce_jit import TokenLogprobs, token_logprobs
from npu_ce_jit.bench.timing import peak_allocated

ALL = {"return_entropy": True, "return_sum_squared_probs": True}
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda x: x,
    "without the last": lambda x: x[:, :-1],
    "transposed": lambda x: x.transpose(0, 1),
    "padded classes": lambda x: x[..., :19],
    "every other": lambda x: x[:, ::2],
    "one row of each": lambda x: x[:, 1],
    "transposed, cut": lambda x: x.transpose(0, 1)[1:, :, 3:],
    "classes apart": lambda x: x.transpose(1, 2),
    "expanded": lambda x: x[:1].expand(4, -1, -1),
    "one row": lambda x: x[0, 0],
    "none": lambda x: x[:0],
}


def exact(
    logits: Tensor, target: Tensor, temperature: float = 1.0, softcap: float | None = None, ignore_index: int = -100
) -> tuple[Tensor, Tensor, Tensor]:
    """The definitions, in float64."""
    x = logits.double()
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    log_prob = (x / temperature).log_softmax(-1)
    counts = target != ignore_index
    p = log_prob.exp()
    of_target = log_prob.gather(-1, torch.where(counts, target, 0).long()[..., None])[..., 0]
    values = of_target, -(p * log_prob).sum(-1), (p * p).sum(-1)
    return tuple(torch.where(counts, v, 0) for v in values)  # type: ignore[return-value]


def targets_of(logits: Tensor, ignore_index: int = -100) -> Tensor:
    target = torch.randint(logits.shape[-1], logits.shape[:-1])
    target.view(-1)[1::3] = ignore_index
    return target


def weighted(values: Any) -> Tensor:
    """A sum in which the rows of each result have different weights."""
    results = (v for v in values if v is not None)
    return sum((v.double().cpu() * (1 + torch.arange(v.numel()).view(v.shape) % 5)).sum() for v in results)


@pytest.mark.feature("log-probabilities and entropy of tokens from logits")
@pytest.mark.feature("float32 log-probabilities of half logits")
@pytest.mark.feature("temperature")
@pytest.mark.feature("sum of squared probabilities, differentiable")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_numbers_and_gradients_are_the_formulas(view, dtype, device):
    for softcap, temperature, options in itertools.product((None, 5.0), (0.6,), ({}, {"return_entropy": True}, ALL)):
        whole = (torch.randn(4, 7, 23, dtype=torch.float64) * 3).to(dtype)
        target = targets_of(VIEWS[view](whole))
        leaf, true = whole.to(device, copy=True).requires_grad_(), whole.double().requires_grad_()
        kinds = {"temperature": temperature, "softcap": softcap}
        found = token_logprobs(VIEWS[view](leaf), target.to(device), **kinds, **options)
        expected = exact(VIEWS[view](true), target, **kinds)[: 1 + len(options)]
        values = found if options else (found,)
        assert isinstance(found, TokenLogprobs) == bool(options)
        assert sum(v is not None for v in values) == len(expected)
        for ours, truth in zip(values, expected, strict=False):
            assert ours.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
            assert ours.is_contiguous()
            torch.testing.assert_close(ours.detach().cpu().double(), truth.detach(), rtol=2e-6, atol=4e-6)
        for results in values, expected:
            weighted(results).backward()
        # With the sum of squares, there are two roundings of up to 2 * 5 / 0.6 each.
        close = {"rtol": torch.finfo(dtype).eps, "atol": 5e-5 + 9 * len(expected) * torch.finfo(dtype).eps}
        torch.testing.assert_close(leaf.grad.cpu().double(), true.grad, **close)


@pytest.mark.feature("tokens that are ignored: 0, and no gradient")
def test_ignored_rows_are_0_whatever_they_hold(device):
    for dtype, view, in_place in itertools.product(DTYPES, ("flat", "without the last"), (False, True)):
        whole = torch.randn(3, 4, 65).to(dtype)
        target = targets_of(VIEWS[view](whole), ignore_index=-1)
        ignored = target == -1
        VIEWS[view](whole)[ignored] = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(22)[:65].to(dtype)
        leaf = whole.to(device).requires_grad_()
        logits, moved = VIEWS[view](leaf * 1), target.to(device)
        found = token_logprobs(logits, moved, ignore_index=-1, inplace_backward=in_place, **ALL)
        for values in found:
            assert not values.cpu()[ignored].any()
            assert not values.cpu()[ignored].signbit().any()
        weighted(found).backward()
        assert not VIEWS[view](leaf.grad.cpu())[ignored].any()
        assert leaf.grad.cpu().isfinite().all()


def test_masked_classes_are_as_if_they_were_not_there(device):
    """-inf logits, as from a sampler that keeps only the top classes."""
    whole, kept = torch.randn(5, 40), [0, 7, 8, 31]
    target = torch.tensor([7, 0, 31, 8, 7])
    masked = torch.full_like(whole, -torch.inf)
    masked[:, kept] = whole[:, kept]
    leaf, true = masked.to(device).requires_grad_(), whole[:, kept].double().requires_grad_()
    found = token_logprobs(leaf, target.to(device), temperature=1.7, **ALL)
    expected = exact(true, torch.tensor([1, 0, 3, 2, 1]), temperature=1.7)
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.detach().cpu().double(), truth.detach(), rtol=2e-6, atol=2e-6)
    for results in found, expected:
        weighted(results).backward()
    torch.testing.assert_close(leaf.grad.cpu()[:, kept].double(), true.grad, rtol=1e-5, atol=1e-5)
    assert leaf.grad.cpu().count_nonzero() <= 5 * len(kept)


def results_of(logits: Tensor, target: Tensor, **options: Any) -> list[Tensor]:
    """All results, row by row, and the gradient, on the CPU."""
    leaf = logits.detach().requires_grad_()
    # detach() keeps a view's strides.
    assert leaf.stride() == logits.stride()
    found = token_logprobs(leaf, target, temperature=0.7, **options, **ALL)
    factors = (target.cpu() % 7).to(leaf.device)
    (gradient,) = torch.autograd.grad(sum((v * factors).sum() for v in found), leaf)
    return [*(v.detach().cpu() for v in found), gradient.cpu()]


# On an NPU, several cores share the classes of a longer row where there are few rows, and so add in another order.
LONG = [] if ON_NPU else [8193, pytest.param(70_001, marks=pytest.mark.exhaustive)]


@pytest.mark.feature("a row's bits wherever it stands")
@pytest.mark.parametrize("classes", [9, 64, 515, 641, 1024, *LONG])
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not torch.float64], ids=str)
def test_a_rows_bits_do_not_depend_on_what_is_beside_it(dtype, classes, device):
    batch, length = 3, 7
    whole = (torch.randn(batch, length, classes) * 4).to(dtype).to(device)
    target = torch.randint(classes, (batch, length)).to(device)
    expected = results_of(whole, target)

    def assert_same(results: list[Tensor], rows: Callable[[Tensor], Tensor], how: str) -> None:
        for name, ours, all_rows in zip((*TokenLogprobs._fields, "gradient"), results, expected, strict=True):
            assert torch.equal(ours, rows(all_rows)), (name, how)

    assert_same(results_of(whole[1, 2], target[1, 2]), lambda v: v[1, 2], "alone")
    assert_same(results_of(whole[:, :-1], target[:, :-1]), lambda v: v[:, :-1], "blocks")
    assert_same(results_of(whole.transpose(0, 1), target.t()), lambda v: v.transpose(0, 1), "transposed")
    moved = [torch.cat((v[:, 3:], v[:, :3]), 1) for v in (whole, target)]
    assert_same(results_of(*moved), lambda v: torch.cat((v[:, 3:], v[:, :3]), 1), "elsewhere")
    many, their_target = (torch.cat([v] * 9, 1) for v in (whole, target))
    assert_same(results_of(many, their_target), lambda v: v.repeat(1, 9, *(1,) * (v.dim() - 2)), "among more")
    wider = torch.cat((whole, whole), -1)[..., :classes]
    assert_same(results_of(wider, target), lambda v: v, "of another stride")
    chunks = [results_of(x, y) for x, y in zip(whole.view(-1, classes).split(4), target.view(-1).split(4), strict=True)]
    assert_same([torch.cat(parts) for parts in zip(*chunks, strict=True)], lambda v: v.flatten(0, 1), "chunks")


@pytest.mark.skipif(ON_NPU, reason="counts what torch allocates on the CPU")
@pytest.mark.parametrize("view", ["flat", "without the last", "transposed", "padded classes"])
def test_the_gradient_is_the_one_tensor_of_the_logits_size(view):
    views = {**VIEWS, "padded classes": lambda x: x[..., :9000]}
    for dtype, options in itertools.product((torch.float32, torch.bfloat16), ({}, {"return_entropy": True}, ALL)):
        logits = views[view](torch.randn(4, 33, 10_000).to(dtype))
        target, size = targets_of(logits), logits.numel() * logits.element_size()

        def forward(logits=logits, target=target, options=options) -> Any:
            return token_logprobs(logits, target, **options)

        def step(logits=logits, target=target, options=options, in_place: bool = False) -> Tensor:
            leaf = logits.detach().requires_grad_()
            found = token_logprobs(leaf, target, inplace_backward=in_place, **options)
            return torch.autograd.grad(weighted(found if options else (found,)), leaf)[0]

        assert peak_allocated(forward) < 0.02 * size
        # With the sum of squares, a chunk has a second gradient; here one chunk has all rows.
        assert peak_allocated(step) < (2.02 if options is ALL else 1.02) * size
        with Watched(large=logits.numel()) as watched:
            step()
        assert len(watched.large_outputs) == (2 if options is ALL else 1), watched.large_outputs
        if view != "padded classes" and options is not ALL:
            assert peak_allocated(lambda step=step: step(in_place=True)) < 0.02 * size


@pytest.mark.skipif(ON_NPU, reason="counts what torch allocates on the CPU")
def test_the_sum_of_squares_has_a_chunk_of_a_second_gradient(monkeypatch):
    monkeypatch.setattr("npu_ce_jit.op.autograd.token_logprobs._CHUNK_BYTES", 300_000)
    logits = torch.randn(4, 33, 10_000)
    target = targets_of(logits)[:, 1:]
    expected = results_of(logits[:, :-1], target)
    size = expected[-1].numel() * 4
    for in_place in False, True:

        def step(in_place: bool = in_place) -> list[Tensor]:
            return results_of(logits.clone()[:, :-1], target, inplace_backward=in_place)

        assert peak_allocated(step) < (1.03 if in_place else 2) * size + 600_000 + 33 / 32 * (not in_place) * 40_000
        for ours, before in zip(step(), expected, strict=True):
            assert torch.equal(ours, before)


@pytest.mark.feature("tokens' gradient written over the logits")
@pytest.mark.parametrize("view", ["flat", "without the last", "transposed", "one row"])
def test_in_place_the_gradient_lies_over_the_logits(view, device):
    whole = torch.randn(4, 6, 133)
    target = targets_of(VIEWS[view](whole)).to(device)
    plain, leaf = (whole.to(device, copy=True).requires_grad_() for _ in range(2))
    weighted(token_logprobs(VIEWS[view](plain), target, **ALL)).backward()
    logits = leaf * 1
    found = token_logprobs(VIEWS[view](logits), target, inplace_backward=True, **ALL)
    version = logits._version
    weighted(found).backward(retain_graph=True)
    assert torch.equal(leaf.grad, plain.grad)
    assert torch.equal(VIEWS[view](logits.detach()), VIEWS[view](plain.grad))
    assert logits._version > version
    with pytest.raises(RuntimeError, match="expected one backward with inplace_backward=True, got a second"):
        weighted(found).backward()


def test_in_place_whoever_else_saved_the_logits_is_told(device):
    logits = torch.randn(4, 6, 133).to(device).requires_grad_() * 1
    other = logits.exp().sum() + (logits * logits).sum()
    token_logprobs(logits, torch.zeros(4, 6, dtype=torch.int64).to(device), inplace_backward=True).sum().backward(
        retain_graph=True
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


def test_in_place_where_it_may_not_be_is_a_new_tensor_or_an_error(device):
    logits, target = torch.randn(3, 4, 11).to(device).requires_grad_(), torch.zeros(3, 4, dtype=torch.int64).to(device)
    options = {"inplace_backward": True}
    apart = (
        logits[..., :9], logits[:, 1], logits[:, :1], logits[:1].expand(3, 4, 11), logits[:, :, ::2],
        logits.transpose(1, 2)[..., :3],
    )  # fmt: skip
    for wrong in apart:
        with pytest.raises(RuntimeError, match=r"rows lie side by side for inplace_backward=True, got shape \["):
            token_logprobs(wrong, torch.zeros(wrong.shape[:-1], dtype=torch.int64).to(device), **options)
    before = logits.detach().clone()
    (gradient,) = torch.autograd.grad(token_logprobs(logits, target, **options).sum(), logits, create_graph=True)
    assert torch.equal(logits, before)
    assert gradient.requires_grad
    changed = logits * 1
    found = token_logprobs(changed, target)
    with torch.no_grad():
        changed.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


@pytest.mark.parametrize(
    ("error", "reported", "arguments"),
    [
        (TypeError, "expected logits to be a Tensor", {"logits": [1.0]}),
        (TypeError, "expected target to be a Tensor", {"target": None}),
        (TypeError, "expected temperature to be a number, got a Tensor", {"temperature": torch.ones(())}),
        (RuntimeError, "expected temperature finite and above 0, got 0", {"temperature": 0}),
        (RuntimeError, "expected temperature finite and above 0, got -1.0", {"temperature": -1.0}),
        (RuntimeError, "expected temperature finite and above 0, got nan", {"temperature": float("nan")}),
        (RuntimeError, "expected temperature finite and above 0, got inf", {"temperature": float("inf")}),
        (RuntimeError, "expected softcap finite and above 0, or None, got 0.0", {"softcap": 0.0}),
        (NotImplementedError, "expected logits of dtype float32", {"logits": torch.ones(2, 3, 5, dtype=torch.int32)}),
        (RuntimeError, "expected target of dtype int64 or int32", {"target": torch.zeros(2, 3)}),
        (RuntimeError, r"got class probabilities of shape \[2, 3, 5\]", {"target": torch.rand(2, 3, 5)}),
        (ValueError, r"batch_size \(2\) to match target batch_size \(3\)", {"target": torch.zeros(3, 2).long()}),
        (RuntimeError, r"target of shape \[2, 3\] for logits \[2, 3, 5\]", {"target": torch.zeros(2, 2).long()}),
        (RuntimeError, r"expected logits of shape \[..., V\], got \[\]", {"logits": torch.ones(())}),
        (RuntimeError, "expected logits with at least one class", {"logits": torch.ones(2, 3, 0)}),
    ],
)
def test_errors(error, reported, arguments, any_device):
    call = {"logits": torch.randn(2, 3, 5), "target": torch.zeros(2, 3, dtype=torch.int64), **arguments}
    moved = {k: v.to(any_device) if isinstance(v, Tensor) and k != "temperature" else v for k, v in call.items()}
    with pytest.raises(error, match=reported):
        token_logprobs(**moved)


@pytest.mark.skipif(ON_NPU, reason="an NPU makes such a row NaN")
def test_a_target_out_of_range_is_told_by_its_place():
    logits, target = torch.randn(4, 3, 5), torch.zeros(4, 3, dtype=torch.int64)
    target[2, 1] = 5
    for x, y, place in (
        (logits, target, "2, 1"),
        (logits[:, 1:], target[:, 1:], "2, 0"),
        (logits.transpose(0, 1), target.t(), "1, 2"),
        (logits[2], target[2], "1"),
    ):
        with pytest.raises(IndexError, match=rf"target\[{place}\] = 5 is out of bounds"):
            token_logprobs(x, y)
