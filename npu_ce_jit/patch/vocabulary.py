# SPDX-License-Identifier: Apache-2.0
"""Labels as Megatron's functions take them, which mask what is out of range."""

from __future__ import annotations

import torch
from torch import Tensor

_IGNORED = -100


def in_vocabulary(target: Tensor, classes: int) -> Tensor:
    """The labels, those outside `[0, classes)` replaced by -100: padding, whose loss its caller masks."""
    return torch.where((target >= 0) & (target < classes), target, _IGNORED)
