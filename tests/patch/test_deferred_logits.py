# SPDX-License-Identifier: Apache-2.0
"""Whatever a model does to its head's logits, the loss and the values read are those of materialised logits."""

from __future__ import annotations

import copy
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

# Operations between head and loss that do not materialise the logits.
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
# Operations that do.
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


def with_gradients(value: Tensor, hidden: Tensor, head: nn.Linear) -> list[Tensor]:
    leaves = (hidden, head.weight, head.bias)
    return [t.detach().cpu() for t in (value, *torch.autograd.grad(value, leaves, retain_graph=True))]


@pytest.mark.parametrize("name", NOTED)
def test_what_needs_no_logits(name: str, device: torch.device) -> None:
    head, hidden, target = layer(torch.device("cpu"))
    hidden.requires_grad_()
    step = NOTED[name]
    made = step(F.linear(hidden, head.weight, head.bias))
    expected = with_gradients(loss_of(made, target), hidden, head)
    there = copy.deepcopy(head).to(device)
    hidden_there = hidden.detach().to(device, copy=True).requires_grad_()
    logits = step(deferred(there, hidden_there))
    assert isinstance(logits, DeferredLogits)
    assert (logits.shape, logits.dtype, logits.device.type) == (made.shape, made.dtype, device.type)
    found = with_gradients(loss_of(logits, target.to(device)), hidden_there, there)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not logits.is_made()


@pytest.mark.parametrize("name", [*NOTED, *OTHERS])
def test_what_is_read(name: str) -> None:
    head, hidden, target = layer(torch.device("cpu"))
    hidden.requires_grad_()
    step = {**NOTED, **OTHERS}[name]
    results = []
    for logits in (F.linear(hidden, head.weight, head.bias), deferred(head, hidden)):
        stepped = step(logits)
        if isinstance(logits, DeferredLogits):
            assert (type(stepped) is Tensor or stepped.is_made()) == (name in OTHERS)
        loss = loss_of(stepped, target)
        results.append(
            [*with_gradients(loss, hidden, head), *with_gradients((stepped * 1).square().sum(), hidden, head)]
        )
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_without_a_gradient_and_under_autocast() -> None:
    head, hidden, _ = layer(torch.device("cpu"))
    for is_autocast in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            expected, logits = F.linear(hidden, head.weight, head.bias), deferred(head, hidden)
        assert logits.dtype == expected.dtype
        read = logits * torch.ones(())
        assert not read.requires_grad
        torch.testing.assert_close(read, expected * torch.ones(()))


def test_a_head_that_was_changed_since() -> None:
    head, hidden, target = layer(torch.device("cpu"))
    logits = deferred(head, hidden)
    read = deferred(head, hidden)
    read.whole()
    with torch.no_grad():
        head.weight.add_(1)
    assert read.sum().isfinite(), "made before"
    with pytest.raises(RuntimeError, match="expected the output head as it was when the model was called, got one"):
        logits.sum()
    assert logits.loss(target).isfinite()


def test_outside_of_a_model_a_head_multiplies() -> None:
    head, hidden, _ = layer(torch.device("cpu"))
    expected = head(hidden)
    deferred(head, hidden)
    assert type(head(hidden)) is Tensor
    torch.testing.assert_close(head(hidden), expected)
    with heads(DeferredLogits.of):  # inside the model's forward, which may read the logits itself
        torch.testing.assert_close(deferred(head, hidden) + 0, expected)
