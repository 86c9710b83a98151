# SPDX-License-Identifier: Apache-2.0
"""This package's operators in terms of torch's own, for `torch.export.ExportedProgram.run_decompositions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from npu_ce_jit.op import operators, reference
from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.linear import operator
from npu_ce_jit.op.linear.chunks import problem_of, without_ignored
from npu_ce_jit.op.schema import ENTROPY, LinearOutputs


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """A table that turns every operator of this package into torch's own.

    `program.run_decompositions(npu_ce_jit.decompositions())` gives a program that also runs where this package is not.
    It computes what the kernels compute, in their accumulation dtypes, but has `[N, C]` intermediates, and the linear
    loss has whole logits, rounded to the inputs' dtype. A target out of range is left to the indexing of torch.

    Returns:
        A new dict, which may be added to `torch.export.default_decompositions()`.
    """
    return {
        # The functions of the public operators call internal ones, to which the table is applied again.
        OPS.cross_entropy.default: operators.cross_entropy,
        OPS.linear_cross_entropy.default: operator.linear_cross_entropy,
        OPS.npu_cross_entropy_loss.default: operators.npu_cross_entropy_loss,
        OPS.npu_cross_entropy_loss_backward.default: operators.npu_cross_entropy_loss_backward,
        OPS._forward.default: reference.forward_of_targets_in_range,
        OPS._backward.default: reference.backward,
        OPS._linear.default: _linear,
    }


def _linear(*arguments: Any) -> LinearOutputs:
    """`_linear` without chunks, whose number would depend on N."""
    problem = problem_of(*arguments[:16])
    loss_dtype, _chunk_rows, _aspect_ratio, group, output_mask = arguments[16:]
    if group is not None:
        raise NotImplementedError("expected a loss of one process, got one over ranks: it has no decomposition")
    input, linear_weight, linear_bias, target, weight, gradients, terms, outputs = problem
    counted = target != terms.ignore_index
    logits = F.linear(input, linear_weight, linear_bias)
    needed = outputs | (0 if gradients.entropy is None else ENTROPY)
    loss, z_loss, _, lse, argmax, entropy, row_stats, denominators = reference.forward_of_targets_in_range(
        logits, target, weight, *terms, needed, loss_dtype
    )
    nothing = input.new_empty(0)
    layer_gradients = [nothing] * 3
    if any(output_mask):
        grad_logits = reference.backward(
            *problem.with_explicit_gradients(counted).gradients, logits, target, weight, row_stats, entropy,
            denominators, *terms,
        )  # fmt: skip
        layer_gradients = [
            grad_logits @ linear_weight if output_mask[0] else nothing,
            grad_logits.t() @ input if output_mask[1] else nothing,
            grad_logits.sum(0) if output_mask[2] else nothing,
        ]
    if not outputs & ENTROPY:
        entropy = entropy.new_empty(0)
    return loss, z_loss, *without_ignored(lse, argmax, entropy, counted, outputs), *layer_gradients  # type: ignore[return-value]
