# SPDX-License-Identifier: Apache-2.0
"""What is asked of the loss from hidden states beside the loss, and the truth of it."""

from __future__ import annotations

import torch
from oracle import Truth
from torch import Tensor

ALL = {"return_z_loss": True, "return_lse": True, "return_argmax": True, "return_entropy": True}
DIFFERENTIABLE = ("loss", "z_loss", "lse", "entropy")


def skipping(expected: Truth, target: Tensor, ignore_index: int) -> Truth:
    """As if the ignored rows were not there."""
    counted = target != ignore_index
    return expected._replace(
        lse=torch.where(counted, expected.lse, 0),
        entropy=torch.where(counted, expected.entropy, 0),
        argmax=torch.where(counted, expected.argmax, -1),
    )
