# SPDX-License-Identifier: Apache-2.0
"""The outputs of the loss from hidden states beside the loss, and their exact values."""

from __future__ import annotations

import torch
from oracle import Truth
from torch import Tensor

ALL = {"return_z_loss": True, "return_lse": True, "return_argmax": True, "return_entropy": True}
DIFFERENTIABLE = ("loss", "z_loss", "lse", "entropy")


def skipping(expected: Truth, target: Tensor, ignore_index: int) -> Truth:
    """What skip_ignored returns: in ignored rows lse and entropy are 0, argmax is -1."""
    counted = target != ignore_index
    return expected._replace(
        lse=torch.where(counted, expected.lse, 0),
        entropy=torch.where(counted, expected.entropy, 0),
        argmax=torch.where(counted, expected.argmax, -1),
    )


def log_probabilities(
    logits: Tensor, target: Tensor, temperature: float, softcap: float | None, ignore_index: int
) -> list[Tensor]:
    """Each row's log-probability, entropy and sum of squared probabilities, from the definitions; 0 where ignored."""
    x = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / temperature
    log_prob, counted = x.log_softmax(-1), target != ignore_index
    p = log_prob.exp()
    at_target = log_prob.gather(-1, torch.where(counted, target, 0)[..., None])[..., 0]
    squares = (p * p).sum(-1)
    if x.dtype is not torch.float64:  # the peer computes it without p, as ours does
        squares = ((2 * x).logsumexp(-1) - 2 * x.logsumexp(-1)).exp()
    return [torch.where(counted, v, 0) for v in (at_target, -(p * log_prob).sum(-1), squares)]
