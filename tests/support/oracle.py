# SPDX-License-Identifier: Apache-2.0
"""The textbook formula in plain torch: in float64 it is the truth, in a narrower dtype it is the peer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Options(NamedTuple):
    """The options of a loss, as `npu_ce_jit.cross_entropy` names them."""

    reduction: str = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """`_asdict()`, which torch.compile traces since 2.8."""
        return {
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "z_loss": self.z_loss,
            "softcap": self.softcap,
            "logit_scale": self.logit_scale,
        }


class Truth(NamedTuple):
    loss: Tensor
    z_loss: Tensor
    log_prob: Tensor
    lse: Tensor
    argmax: Tensor
    entropy: Tensor


def truth(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> Truth:
    """Every output, written out from the definition; differentiable in `logits`."""
    x = options.logit_scale * logits
    if options.softcap is not None:
        x = options.softcap * torch.tanh(x / options.softcap)
    lse = torch.logsumexp(x, dim=1)
    log_prob = x - lse[:, None]
    classes = x.shape[1]
    w = torch.ones(classes, dtype=x.dtype) if weight is None else weight.to(x.dtype)

    losses, weights, z_losses = [], [], []
    for row, y in enumerate(map(int, target)):  # not tolist, which fails under torch.func before torch 2.8
        if y == options.ignore_index:
            losses.append(x.new_zeros(()))
            z_losses.append(x.new_zeros(()))
            continue
        hard = -w[y] * log_prob[row, y]
        loss = hard
        if options.label_smoothing:
            smooth = -(w * log_prob[row]).sum()
            loss = (1 - options.label_smoothing) * hard + options.label_smoothing / classes * smooth
        losses.append(loss)
        weights.append(w[y])
        z_losses.append(options.z_loss * lse[row] ** 2)
    ce = torch.stack(losses) if losses else x.new_zeros(0)
    z = torch.stack(z_losses) if z_losses else x.new_zeros(0)
    if options.reduction == "sum":
        ce, z = ce.sum(), z.sum()
    elif options.reduction == "mean":
        total = torch.stack(weights).sum() if weights else x.new_zeros(())
        ce, z = ce.sum() / total, z.sum() / len(weights) if weights else z.sum() * torch.nan
    p = log_prob.exp()
    entropy = -torch.where(p == 0, 0.0, p * torch.where(p == 0, 0.0, log_prob)).sum(dim=1)
    loss = ce + z if options.z_loss else ce
    return Truth(loss, z, log_prob, lse, x.argmax(dim=1), entropy)


def gradient(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: Options, grad_loss: Tensor, dtype: torch.dtype
) -> Tensor:
    """d loss / d logits with the formula evaluated in `dtype`."""
    leaf = logits.detach().to(dtype).requires_grad_()
    loss = truth(leaf, target, weight, options).loss
    (result,) = torch.autograd.grad(loss, leaf, grad_loss.to(dtype))
    return result
