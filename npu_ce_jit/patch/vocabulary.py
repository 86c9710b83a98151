# SPDX-License-Identifier: Apache-2.0
"""Labels of Megatron's functions, which mask those that are out of range."""

from __future__ import annotations

import torch
from torch import Tensor

_IGNORED = -100


def in_vocabulary(target: Tensor, classes: int) -> Tensor:
    """The labels, with -100 for those outside `[0, classes)`: they are padding, whose loss the caller masks."""
    return torch.where((target >= 0) & (target < classes), target, _IGNORED)
