# SPDX-License-Identifier: Apache-2.0
"""Batches of gradients through torch's older vmap: `is_grads_batched`, `vectorize=True`, gradcheck's batched checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import jacobian

from npu_ce_jit import cross_entropy, linear_cross_entropy, npu_cross_entropy_loss

Loss = Callable[[Tensor], Tensor]

TARGET = torch.tensor([4, 0, -100, 2, 1])
HEAD = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3).sin()


def in_place(x: Tensor) -> Tensor:
    """On a copy of the logits, over which the gradient may be written."""
    return cross_entropy(x * 1, TARGET, reduction="none", inplace_backward=True)


# (the loss, the same loss from torch's own operators).
FORMS: dict[str, tuple[Loss, Loss]] = {
    "cross_entropy": (
        lambda x: cross_entropy(x, TARGET, label_smoothing=0.1),
        lambda x: F.cross_entropy(x, TARGET, label_smoothing=0.1),
    ),
    "rows": (
        lambda x: cross_entropy(x, TARGET, reduction="none"),
        lambda x: F.cross_entropy(x, TARGET, reduction="none"),
    ),
    "in place": (in_place, lambda x: F.cross_entropy(x, TARGET, reduction="none")),
    "log_prob": (lambda x: npu_cross_entropy_loss(x, TARGET)[1], lambda x: x.log_softmax(1)),
    "linear": (
        lambda x: linear_cross_entropy(x[:, :3], HEAD, TARGET),
        lambda x: F.cross_entropy(F.linear(x[:, :3], HEAD), TARGET),
    ),
    "linear rows": (
        lambda x: linear_cross_entropy(x[:, :3], HEAD, TARGET, reduction="none"),
        lambda x: F.cross_entropy(F.linear(x[:, :3], HEAD), TARGET, reduction="none"),
    ),
}


def logits() -> Tensor:
    return torch.randn(5, 6, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_a_batch_of_directions(form: str) -> None:
    loss, reference = FORMS[form]
    x = logits()
    output = loss(x)
    directions = torch.randn(4, *output.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(output, x, directions, is_grads_batched=True)
    expected = [torch.autograd.grad(reference(x), x, direction)[0] for direction in directions]
    torch.testing.assert_close(batched, torch.stack(expected))


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@pytest.mark.parametrize("form", FORMS)
def test_vectorized_jacobian(form: str, strategy: str) -> None:
    loss, reference = FORMS[form]
    x = logits().detach()
    vectorized = jacobian(loss, x, vectorize=True, strategy=strategy)
    torch.testing.assert_close(vectorized, jacobian(reference, x))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "in place"])
def test_gradcheck_of_batches(form: str) -> None:
    loss, _ = FORMS[form]
    x = logits()
    assert torch.autograd.gradcheck(
        loss, (x,), check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(loss, (x,), check_batched_grad=True)
