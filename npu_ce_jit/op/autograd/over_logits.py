# SPDX-License-Identifier: Apache-2.0
"""`inplace_backward`: whether a backward writes the gradient over the logits, and that it does so once."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_ce_jit.op.torch_private import is_inside_backward, is_plain_eager


class OverLogits:
    """Of one call; backward asks `allowed`, and says `spend` when it has written."""

    def __init__(self, logits: Tensor, is_asked: bool) -> None:
        self._is_possible = is_asked and is_plain_eager(logits) and not is_inside_backward()
        self._is_spent = False

    def require_unspent(self) -> None:
        if self._is_spent:
            raise RuntimeError(
                "expected one backward with inplace_backward=True, got a second: the first one wrote the gradient "
                "over the logits; pass inplace_backward=False to go through the graph twice"
            )

    def allowed(self, logits: Tensor) -> bool:
        """In a plain step. A leaf's gradient from an earlier step lies over the logits too, and is still added to."""
        has_gradient = logits.is_leaf and logits.grad is not None
        return self._is_possible and is_plain_eager(logits) and not torch.is_grad_enabled() and not has_gradient

    def spend(self, logits: Tensor) -> Tensor:
        """The gradient, which lies there now. Another backward that saved the logits finds that by their version."""
        self._is_spent = True
        torch.autograd.graph.increment_version(logits)
        return logits.detach()
