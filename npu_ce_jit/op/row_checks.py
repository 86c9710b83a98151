# SPDX-License-Identifier: Apache-2.0
"""Checks of calls on `[..., V]` logits: for log-probabilities of tokens, and for losses whose classes ranks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from npu_ce_jit.op.checks import check_kinds, check_terms, require_that, shape_of


def check_token_logprobs(
    logits: Tensor, target: Tensor, temperature: float, softcap: float | None, *, name: str = "logits"
) -> None:
    """Checks a call on `[..., V]` logits and a target of each row."""
    if target.is_floating_point() and target.shape == logits.shape:
        raise RuntimeError(
            f"expected class indices, got class probabilities of shape {shape_of(target)}; pass target.argmax(-1), or "
            f"compute (target * {name}.log_softmax(-1)).sum(-1)"
        )
    check_kinds(logits, target, None, input_name=name)
    if logits.dim() < 1:
        raise RuntimeError(f"expected {name} of shape [..., V], got {shape_of(logits)}")
    _check_row_shape(target, logits, name)
    check_terms("none", 0.0, {}, softcap)
    check_temperature(temperature)


def check_temperature(temperature: float) -> None:
    if not 0.0 < temperature < math.inf:
        raise RuntimeError(f"expected temperature finite and above 0, got {temperature}")


def check_shard(local_logits: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """Checks the tensors of a loss over some of the classes of `[..., C_rank]` logits, which may be none."""
    check_kinds(local_logits, target, weight, input_name="local_logits")
    if local_logits.dim() < 2:
        raise RuntimeError(f"expected local_logits of shape [..., C_rank], got {shape_of(local_logits)}")
    _check_row_shape(target, local_logits, "local_logits")
    check_weight_of_ranks(weight, local_logits.shape[-1])


def check_weight_of_ranks(weight: Tensor | None, classes: int) -> None:
    """Checks the weights of a rank's classes, or of all ranks'."""
    if weight is not None and (weight.dim() != 1 or len(weight) < classes):
        raise RuntimeError(
            f"expected weight of shape [{classes}], one for each class of the rank, or [C], one for each class of all "
            f"ranks, got {shape_of(weight)}"
        )


def check_inplace_blocks(logits: Tensor, blocks: Sequence[Tensor], name: str = "logits") -> None:
    """Checks that a gradient can be written over `blocks`, the `[n, V]` views as which `[..., V]` logits are read."""
    is_expanded = any(size > 1 and stride == 0 for size, stride in zip(logits.shape, logits.stride(), strict=True))
    if is_expanded or not all(block.is_contiguous() for block in blocks):
        raise RuntimeError(
            f"expected {name} whose rows lie side by side for inplace_backward=True, got shape {shape_of(logits)} with "
            f"strides {list(logits.stride())}; pass {name}.contiguous() or inplace_backward=False"
        )


def _check_row_shape(target: Tensor, logits: Tensor, name: str) -> None:
    """One target for each row of `[..., V]`."""
    expected = logits.shape[:-1]
    require_that(
        target.shape == expected,
        RuntimeError,
        lambda: f"expected target of shape {list(expected)} for {name} {shape_of(logits)}, got {shape_of(target)}",
    )
