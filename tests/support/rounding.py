# SPDX-License-Identifier: Apache-2.0
"""How far a result may be from the truth: as a peer that rounds in the same places, or as its own rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def root_mean_square(values: Tensor) -> float:
    return values.square().mean().sqrt().item() if values.numel() else 0.0


def require_no_worse(result: Tensor, peer: Tensor, true: Tensor, scale: float = 0.0) -> None:
    """The error is at most twice the peer's, or the result's rounding and a relative 1e-6 (float64: 1e-12).

    `scale` is the size of the terms of a sum that may cancel: each was rounded once, in the dtype that accumulates.
    By the root of the mean square: the largest of a few errors that are all within rounding is a matter of luck.
    """
    error, peer_error = (root_mean_square(value.double() - true) for value in (result, peer))
    relative = 1e-12 if result.dtype is torch.float64 else 1e-6
    floor = relative * root_mean_square(true) + root_mean_square(true.to(result.dtype).double() - true)
    floor += scale * torch.finfo(torch.promote_types(result.dtype, torch.float32)).eps
    assert error <= max(2 * peer_error, floor), (error, peer_error, floor)
