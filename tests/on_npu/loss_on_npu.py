# SPDX-License-Identifier: Apache-2.0
"""A loss and its gradient on the device, their exact values, and a fixture that clears faults after each test."""

from __future__ import annotations

from collections.abc import Iterator

import acl
import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401
from torch import Tensor
from virtual_cann import observe

from npu_ce_jit import cross_entropy


@pytest.fixture(autouse=True)
def whole_device() -> Iterator[None]:
    acl.set_device(0)
    yield
    observe.set_faults("")
    observe.clear_errors()


def loss_and_gradient(x: Tensor, target: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """On the device of `x`, without waiting for it."""
    leaf = x.detach().requires_grad_()
    loss = cross_entropy(leaf, target, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss, gradient


def assert_right(got: tuple[Tensor, Tensor], x: Tensor, target: Tensor, **options: object) -> None:
    leaf = x.cpu().float().requires_grad_()
    loss = F.cross_entropy(leaf, target, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(got[0].cpu().float(), loss, rtol=eps, atol=2e-6)
    torch.testing.assert_close(got[1].cpu().float(), gradient, rtol=eps, atol=2e-6)
