# SPDX-License-Identifier: Apache-2.0
"""Bounds on a result's error: that of a peer that rounds in the same places, or the result's own rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def root_mean_square(values: Tensor) -> float:
    return values.square().mean().sqrt().item() if values.numel() else 0.0


def require_no_worse(result: Tensor, peer: Tensor, true: Tensor, scale: float = 0.0) -> None:
    """The error is at most twice the peer's, or at most the result's rounding plus a relative 1e-6 (float64: 1e-12).

    `scale` is the size of the terms of a sum that may cancel: each was rounded once, in the accumulation dtype. Errors
    are compared by their root mean square, since the largest of a few errors within rounding is a matter of chance.
    """
    error, peer_error = (root_mean_square(value.double() - true) for value in (result, peer))
    relative = 1e-12 if result.dtype is torch.float64 else 1e-6
    floor = relative * root_mean_square(true) + root_mean_square(true.to(result.dtype).double() - true)
    floor += scale * torch.finfo(torch.promote_types(result.dtype, torch.float32)).eps
    assert error <= max(2 * peer_error, floor), (error, peer_error, floor)
