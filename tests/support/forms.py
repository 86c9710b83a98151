# SPDX-License-Identifier: Apache-2.0
"""The three forms of the loss, each from hidden states and a head, so that one test serves all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from npu_ce_jit import cross_entropy, linear_cross_entropy, npu_cross_entropy_loss

OPS = torch.ops.npu_ce_jit

# Loss(hidden [N, H], head weight [C, H], target [N], class weights [C]).
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def drop_in(hidden: Tensor, head: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return npu_cross_entropy_loss(F.linear(hidden, head), target, weight)[0].reshape(())


def from_logits(hidden: Tensor, head: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return cross_entropy(F.linear(hidden, head), target, weight)


def linear(hidden: Tensor, head: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, head, target, weight=weight)


def theirs(hidden: Tensor, head: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head), target, weight)


class Form(NamedTuple):
    loss: Loss
    public: torch._ops.OpOverload  # in graphs and profiles
    internal: torch._ops.OpOverload  # seen by a dispatch mode in a step
    node: str  # its node in the autograd graph


FORMS = {
    "drop-in": Form(drop_in, OPS.npu_cross_entropy_loss.default, OPS._forward.default, "CrossEntropyBackward"),
    "cross_entropy": Form(from_logits, OPS.cross_entropy.default, OPS._forward.default, "CrossEntropyBackward"),
    "linear": Form(linear, OPS.linear_cross_entropy.default, OPS._linear.default, "LinearCrossEntropyBackward"),
}


def operands(*batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Seven rows of five features, and eleven classes; one row is ignored."""
    target = torch.randint(11, (*batch, 7))
    target[..., 2] = -100
    return (
        torch.randn(*batch, 7, 5, dtype=dtype),
        torch.randn(*batch, 11, 5, dtype=dtype),
        target,
        torch.rand(*batch, 11, dtype=dtype),
    )


def gradients(loss: Loss, hidden: Tensor, head: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The loss, and its gradients with respect to hidden states and head."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (hidden, head)]
    value = loss(*leaves, target, weight)
    return value.detach(), *torch.autograd.grad(value, leaves)
