# SPDX-License-Identifier: Apache-2.0
"""Common needs of training code: transformers' loss, log-probabilities of tokens, padded vocabularies."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from npu_ce_jit import causal_lm_loss, cross_entropy, linear_cross_entropy

BATCH, LENGTH, VOCAB, PADDED = 3, 7, 13, 16


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    labels = torch.randint(VOCAB, (BATCH, LENGTH))
    labels[0, :3] = labels[2, -1] = -100
    return torch.randn(BATCH, LENGTH, VOCAB).to(dtype), labels


def written_out(logits: Tensor, labels: Tensor, items: Any = None, ignore_index: int = -100) -> Tensor:
    """The formula: each position predicts the next label; the sum of the log-probabilities, divided by the items."""
    total, count = logits.new_zeros((), dtype=torch.float64), 0
    for row, targets in zip(logits.double().log_softmax(-1), labels.tolist(), strict=True):
        for position, target in enumerate(targets[1:]):
            if target != ignore_index:
                total, count = total - row[position, target], count + 1
    return total / (count if items is None else items)


@pytest.mark.feature("Hugging Face Trainer")
@pytest.mark.parametrize("items", [None, 29, torch.tensor(29), torch.tensor([29])], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_loss_of_a_causal_language_model(dtype: torch.dtype, items: Any, device: torch.device) -> None:
    logits, labels = batch(dtype)
    exact = logits.double().requires_grad_()
    expected = written_out(exact, labels, items)
    expected.sum().backward()
    for wrapped in (dict, tuple, SimpleNamespace, Tensor):
        leaf = logits.to(device, copy=True).requires_grad_()
        outputs = {
            dict: {"loss": None, "logits": leaf},
            tuple: (leaf, "past"),
            SimpleNamespace: SimpleNamespace(logits=leaf),
            Tensor: leaf,
        }[wrapped]
        loss = causal_lm_loss(outputs, labels, num_items_in_batch=items)  # as Trainer calls its compute_loss_func
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.cpu().double(), expected.detach(), rtol=2e-6, atol=0.0)
        loss.sum().backward()
        assert leaf.grad.dtype == dtype
        coarse = torch.finfo(dtype).eps
        torch.testing.assert_close(leaf.grad.cpu().double(), exact.grad, rtol=4 * coarse, atol=1e-6)


@pytest.mark.feature("Hugging Face model.loss_function")
def test_the_call_that_models_make(device: torch.device) -> None:
    logits, labels = batch()
    there = logits.to(device).requires_grad_()
    call = partial(causal_lm_loss, logits=there, vocab_size=VOCAB, use_cache=False)
    expected = written_out(logits, labels).float()
    torch.testing.assert_close(call(labels=labels).cpu(), expected)
    shifted = torch.cat((labels[:, 1:], torch.full((BATCH, 1), -100)), 1)
    torch.testing.assert_close(call(labels=None, shift_labels=shifted).cpu(), expected)
    marked = labels.masked_fill(labels == -100, -1)
    torch.testing.assert_close(call(labels=marked, ignore_index=-1).cpu(), expected)
    with_options = call(
        labels=labels, z_loss=0.1, label_smoothing=0.1, softcap=5.0, logit_scale=0.5, inplace_backward=True
    )
    flat = cross_entropy(
        logits.flatten(0, 1), shifted.flatten(), z_loss=0.1, label_smoothing=0.1, softcap=5.0, logit_scale=0.5
    )
    torch.testing.assert_close(with_options.cpu(), flat)


def test_what_the_loss_of_a_language_model_refuses() -> None:
    logits, labels = batch()
    for outputs in ({"loss": logits}, (), object(), None):
        with pytest.raises(TypeError, match="expected logits to be a Tensor, got"):
            causal_lm_loss(outputs, labels)
    with pytest.raises(TypeError, match="expected labels to be a Tensor, got NoneType"):
        causal_lm_loss(logits, None)
    with pytest.raises(RuntimeError, match=r"vocab_size=12\], got \[3, 7, 13\]; pass logits"):
        causal_lm_loss(logits, labels, vocab_size=12)


class Sizes(TorchDispatchMode):
    """Records the sizes of all tensors that operators allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if not op.is_view:
            tensors = result if isinstance(result, tuple | list) else (result,)
            self.made += [t.numel() for t in tensors if isinstance(t, Tensor)]
        return result


def test_no_copy_of_the_logits_is_made(device: torch.device) -> None:
    logits, labels = batch(torch.bfloat16)
    padded = F.pad(logits, (0, PADDED - VOCAB)).to(device)
    there = labels.to(device)
    with Sizes() as sizes:
        causal_lm_loss(padded, there)
        causal_lm_loss(padded[..., :VOCAB], there)
        cross_entropy(padded.flatten(0, 1)[:, :VOCAB], there.flatten())
    assert 0 < max(sizes.made) < logits.numel()


@pytest.mark.feature("per-token log-probabilities")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_of_tokens(temperature: float, device: torch.device) -> None:
    logits, tokens = torch.randn(BATCH, LENGTH, VOCAB), torch.randint(VOCAB, (BATCH, LENGTH))
    advantages = torch.randn(BATCH, LENGTH)

    def ours(x: Tensor) -> Tensor:
        flat = -cross_entropy(
            x.flatten(0, 1), tokens.to(x.device).flatten(), reduction="none", logit_scale=1 / temperature
        )
        return flat.view(tokens.shape)

    def theirs(x: Tensor) -> Tensor:
        return (x / temperature).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]

    results = []
    for log_probs, x in ((ours, logits.to(device, copy=True)), (theirs, logits.clone())):
        leaf = x.requires_grad_()
        value = log_probs(leaf).cpu()
        # A policy gradient: the ratio to the sampling policy, times the advantage.
        ((value - value.detach()).exp() * advantages).sum().backward()
        results.append((value.detach(), leaf.grad.cpu()))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.feature("padded vocabulary")
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}], ids=["plain", "smoothed"])
def test_a_padded_vocabulary_is_a_slice(options: dict[str, float], device: torch.device) -> None:
    hidden, head, target = torch.randn(5, 6), torch.randn(PADDED, 6), torch.randint(VOCAB, (5,))
    results = []
    for loss, place in (
        (lambda x, w, t: cross_entropy(F.linear(x, w[:VOCAB]), t, **options), torch.device("cpu")),
        (lambda x, w, t: cross_entropy(F.linear(x, w)[:, :VOCAB], t, **options), device),
        (lambda x, w, t: linear_cross_entropy(x, w[:VOCAB], t, **options), device),
    ):
        leaves = [t.to(place, copy=True).requires_grad_() for t in (hidden, head)]
        value = loss(*leaves, target.to(place))
        value.backward()
        results.append([t.detach().cpu() for t in (value, *(leaf.grad for leaf in leaves))])
        assert not results[-1][2][VOCAB:].any()
    exact, *others = results
    for other in others:
        torch.testing.assert_close(other, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.feature("padded vocabulary")
def test_a_padded_vocabulary_is_masked_in_place(device: torch.device) -> None:
    """Without a second tensor of the logits' size: -inf in the padding, and the gradient over the logits."""
    hidden, head, target = torch.randn(5, 6), torch.randn(PADDED, 6), torch.randint(VOCAB, (5,))
    sliced, masked = (head.to(device, copy=True).requires_grad_() for _ in range(2))
    x, y = hidden.to(device), target.to(device)
    cross_entropy(F.linear(x, sliced)[:, :VOCAB], y).backward()
    logits = F.linear(x, masked)
    with torch.no_grad():
        logits[:, VOCAB:] = -torch.inf
    cross_entropy(logits, y, inplace_backward=True).backward()
    torch.testing.assert_close(masked.grad.cpu(), sliced.grad.cpu())
    assert not masked.grad[VOCAB:].cpu().any()
