# SPDX-License-Identifier: Apache-2.0
"""Whatever a model does to the logits of its head, the loss and what is read are those of logits that were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npu_ce_jit.patch.deferred_logits import DeferredLogits, head_forward, heads
from npu_ce_jit.patch.exchange import Change, exchange

ROWS, FEATURES, CLASSES = 7, 5, 13
Step = Callable[[Tensor], Tensor]

# What models do between head and loss, and needs no logits.
NOTED: dict[str, Step] = {
    "nothing": lambda x: x,
    "a factor": lambda x: x * 0.3,
    "a factor before": lambda x: 3 * x,
    "a divisor": lambda x: x / 7,
    "torch's mul and div": lambda x: torch.div(torch.mul(x, 0.3), 2),
    "Gemma's softcap": lambda x: torch.tanh(x / 1.5) * 1.5,
    "a method": lambda x: (x / 1.5).tanh().mul(1.5),
    "a softcap and factors around it": lambda x: ((x * 2 / 1.5).tanh() * 1.5) / 4,
    "float": lambda x: x.float(),
    "to, contiguous": lambda x: x.to(torch.float32).contiguous().to(dtype=torch.float32) * 0.3,
}
# What makes them.
OTHERS: dict[str, Step] = {
    "a factor of 0": lambda x: x * 0,
    "a negative factor": lambda x: x * -0.3,
    "a factor in a tensor": lambda x: x * torch.tensor(0.3, device=x.device),
    "a factor a class": lambda x: x * torch.linspace(0, 1, CLASSES, device=x.device),
    "a divisor below": lambda x: 0.3 / (x.abs() + 1),
    "a rounded quotient": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "a second tanh": lambda x: torch.tanh(torch.tanh(x)),
    "a sum": lambda x: x + 1,
    "in place": lambda x: x.mul_(0.3),
    "in place of a part": lambda x: [x, x[:, 3:].fill_(-5.0)][0],
    "a sigmoid": lambda x: torch.sigmoid(x) * 2,
    "a narrower dtype": lambda x: x.to(torch.bfloat16).float(),
    "a stack": lambda x: torch.cat([x[:, :6], x[:, 6:]], 1),
    "out of order": lambda x: x[:, torch.arange(CLASSES).flip(0)],
}


def layer(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor, Tensor]:
    head = nn.Linear(FEATURES, CLASSES).to(device, dtype)
    target = torch.randint(CLASSES, (ROWS,))
    target[2] = -100
    return head, torch.randn(ROWS, FEATURES).to(device, dtype), target.to(device)


def deferred(head: nn.Linear, hidden: Tensor) -> Any:
    exchange("toys.head()", Change(head, "forward", head_forward))
    with heads(DeferredLogits.of):
        return head(hidden)


def loss_of(logits: Any, target: Tensor) -> Tensor:
    if isinstance(logits, DeferredLogits) and not logits.is_made():
        return logits.loss(target, loss_dtype=torch.float32)
    return F.cross_entropy(logits.float(), target)


def results(head: nn.Linear, hidden: Tensor, target: Tensor, logits: Any, step: Step) -> list[Tensor]:
    logits = step(logits)
    loss = loss_of(logits, target)
    leaves = (hidden, head.weight, head.bias)
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
    read = torch.autograd.grad((logits * 1).square().sum(), leaves)
    return [t.detach().cpu() for t in (loss, logits + 0, *gradients, *read)]


@pytest.mark.parametrize("name", NOTED)
def test_what_needs_no_logits(name: str, device: torch.device) -> None:
    head, hidden, target = layer(device)
    hidden.requires_grad_()
    made, step = F.linear(hidden, head.weight, head.bias), NOTED[name]
    expected = results(head, hidden, target, made, step)
    logits = deferred(head, hidden)
    stepped = step(logits)
    assert isinstance(stepped, DeferredLogits)
    assert (stepped.shape, stepped.dtype, stepped.device) == (made.shape, step(made).dtype, made.device)
    torch.testing.assert_close(results(head, hidden, target, logits, step), expected, rtol=1e-5, atol=1e-6)
    assert not logits.is_made() or name == "nothing"


@pytest.mark.parametrize("name", OTHERS)
def test_what_makes_them(name: str, any_device: torch.device) -> None:
    head, hidden, target = layer(any_device)
    hidden.requires_grad_()
    step = OTHERS[name]
    expected = results(head, hidden, target, F.linear(hidden, head.weight, head.bias), step)
    logits = deferred(head, hidden)
    stepped = step(logits)
    assert type(stepped) is Tensor or stepped.is_made()
    head_again = deferred(head, hidden)
    torch.testing.assert_close(results(head, hidden, target, head_again, step), expected)


def test_without_a_gradient_and_under_autocast(any_device: torch.device) -> None:
    head, hidden, _ = layer(any_device)
    for is_autocast in (False, True):
        with torch.no_grad(), torch.autocast(any_device.type, torch.bfloat16, enabled=is_autocast):
            expected, logits = F.linear(hidden, head.weight, head.bias), deferred(head, hidden)
        assert logits.dtype == expected.dtype
        read = logits * torch.ones((), device=any_device)
        assert not read.requires_grad
        torch.testing.assert_close(read, expected * torch.ones((), device=any_device))


def test_a_head_that_was_changed_since(any_device: torch.device) -> None:
    head, hidden, target = layer(any_device)
    logits = deferred(head, hidden)
    read = deferred(head, hidden)
    read.whole()
    with torch.no_grad():
        head.weight.add_(1)
    assert read.sum().isfinite(), "made before"
    with pytest.raises(
        RuntimeError, match="expected the output head as it was when the model was called, got one"
    ):
        logits.sum()
    assert logits.loss(target).isfinite()


def test_outside_of_a_model_a_head_multiplies(any_device: torch.device) -> None:
    head, hidden, _ = layer(any_device)
    expected = head(hidden)
    deferred(head, hidden)
    assert type(head(hidden)) is Tensor
    torch.testing.assert_close(head(hidden), expected)
