# SPDX-License-Identifier: Apache-2.0
"""`inplace_backward`: decides whether backward writes the gradient over the logits, and refuses a second backward."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_ce_jit.op.torch_private import is_inside_backward, is_plain_eager


class OverLogits:
    """The state of one call. Backward asks `allowed` before it writes over the logits, and calls `spend` afterwards."""

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
        """Only in a plain eager step, and not over a leaf that has a gradient.

        An earlier step may have written that gradient over the same logits, and autograd still adds to it.
        """
        has_gradient = logits.is_leaf and logits.grad is not None
        return self._is_possible and is_plain_eager(logits) and not torch.is_grad_enabled() and not has_gradient

    def spend(self, logits: Tensor) -> Tensor:
        """The gradient, in the logits' memory. Their version changes, so another backward that saved them raises."""
        self._is_spent = True
        torch.autograd.graph.increment_version(logits)
        return logits.detach()
