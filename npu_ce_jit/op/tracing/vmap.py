# SPDX-License-Identifier: Apache-2.0
"""vmap rules: a batch of losses is one loss over the rows of all samples, reduced sample by sample afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.op import operators
from npu_ce_jit.op.autograd.functions import OPS, in_requested_shape
from npu_ce_jit.op.rows import denominators_of_targets
from npu_ce_jit.op.schema import (
    ARGMAX,
    ENTROPY,
    LOG_PROB,
    LSE,
    MEAN,
    NONE,
    Z_LOSS,
    ForwardOutputs,
    LossTerms,
    accumulated,
    accumulation_dtype,
)

InDims = tuple[int | None, ...]


def forward_rule(info: Any, in_dims: InDims, *arguments: Any) -> tuple[ForwardOutputs, tuple[int, ...]]:
    """vmap of `_forward`."""
    if in_dims[2] is not None:
        return _one_by_one(OPS._forward.default, info.batch_size, in_dims, arguments), (0,) * 8
    batch = info.batch_size
    input, target = (_batched(a, d, batch) for a, d in zip(arguments[:2], in_dims, strict=False))
    weight, *terms_values, outputs, loss_dtype = arguments[2:]
    terms = LossTerms(*terms_values)
    rows = target.shape[1]
    asked = outputs | (Z_LOSS if terms.z_loss else 0)
    loss, z, log_prob, lse, argmax, entropy, row_stats, _ = OPS._forward.default(
        input.flatten(0, 1),
        target.reshape(batch * rows),
        weight,
        *terms._replace(reduction=NONE),
        asked,
        accumulation_dtype(input.dtype),
    )
    denominators = denominators_of_targets(target, weight, terms.ignore_index, accumulation_dtype(input.dtype))
    loss = loss.reshape(batch, rows)
    z = z.reshape(batch, rows) if asked & Z_LOSS else torch.zeros_like(loss)
    if terms.reduction != NONE:
        ce_sum, z_sum = (loss - z if terms.z_loss else loss).sum(1), z.sum(1)
        if terms.reduction == MEAN:
            ce_sum, z_sum = ce_sum / denominators[:, 0], z_sum / denominators[:, 1]
        loss, z = (ce_sum + z_sum if terms.z_loss else ce_sum), z_sum
    nothing = (batch, 0)
    result = (
        loss.to(loss_dtype),
        z.to(loss_dtype) if outputs & Z_LOSS else z.new_empty(nothing, dtype=loss_dtype),
        log_prob.reshape((batch, *input.shape[1:]) if outputs & LOG_PROB else nothing),
        lse.reshape((batch, rows) if outputs & LSE else nothing),
        argmax.reshape((batch, rows) if outputs & ARGMAX else nothing),
        entropy.reshape((batch, rows) if outputs & ENTROPY else nothing),
        row_stats.reshape(2, batch, rows),
        denominators,
    )
    return result, (0, 0, 0, 0, 0, 0, 1, 0)


def backward_rule(info: Any, in_dims: InDims, *arguments: Any) -> tuple[Tensor, int]:
    """vmap of `_backward`."""
    if in_dims[7] is not None:
        return _one_by_one(OPS._backward.default, info.batch_size, in_dims, arguments), 0
    batch = info.batch_size
    tensors = [None if a is None else _batched(a, d, batch) for a, d in zip(arguments[:7], in_dims, strict=False)]
    loss, z_loss, log_prob, lse, entropy_gradient, input, target = tensors
    assert input is not None and target is not None
    weight, row_stats, entropy, denominators = arguments[7:11]
    terms = LossTerms(*arguments[11:])
    rows = target.shape[1]
    denominators = _batched(denominators, in_dims[10], batch)
    row_stats = _batched(row_stats, in_dims[8], batch)
    loss, z_loss = _row_gradients(loss, z_loss, denominators, terms, (batch, rows))
    result = OPS._backward.default(
        *(None if g is None else g.reshape(batch * rows) for g in (loss, z_loss)),
        None if log_prob is None else log_prob.flatten(0, 1),
        *(None if g is None else g.reshape(batch * rows) for g in (lse, entropy_gradient)),
        input.flatten(0, 1),
        target.reshape(batch * rows),
        weight,
        row_stats.movedim(1, 0).reshape(2, batch * rows),
        None if entropy is None else _batched(entropy, in_dims[9], batch).reshape(-1),
        torch.ones_like(denominators[0]),
        *terms._replace(reduction=NONE),
    )
    return result.reshape(input.shape), 0


def cross_entropy_rule(info: Any, in_dims: InDims, *arguments: Any) -> Any:
    """vmap of `cross_entropy`."""
    outputs = operators.select_cross_entropy(_batch_forward(operators.prepare_cross_entropy, info, in_dims, arguments))
    return outputs, (0,) * len(outputs)


def npu_cross_entropy_loss_rule(info: Any, in_dims: InDims, *arguments: Any) -> Any:
    """vmap of `npu_cross_entropy_loss`."""
    outputs = operators.select_npu_cross_entropy_loss(
        _batch_forward(operators.prepare_npu_cross_entropy_loss, info, in_dims, arguments)
    )
    return outputs, (0,) * len(outputs)


def _batch_forward(
    prepare: Callable[..., operators.Prepared], info: Any, in_dims: InDims, arguments: tuple[Any, ...]
) -> ForwardOutputs:
    """The forward of a public loss: its checks and options read one sample, and it runs over the whole batch."""
    dims = (*in_dims[:3], *(None,) * (3 - len(in_dims)))
    input, target, weight = tensors = (*arguments[:3], *(None,) * (3 - len(arguments)))
    sample = (a if d is None else a.select(d, 0) for a, d in zip(tensors, dims, strict=True))
    request = prepare(*sample, *arguments[3:]).request
    outputs, _ = forward_rule(
        info, dims, input, target, accumulated(weight, input), *request.terms, request.outputs, request.loss_dtype
    )
    return in_requested_shape(outputs, request, batch=(info.batch_size,))


def npu_cross_entropy_loss_backward_rule(info: Any, in_dims: InDims, *arguments: Any) -> Any:
    """vmap of an operator that is rarely batched: a loop, so that each call keeps the operator's own autograd."""
    return _one_by_one(OPS.npu_cross_entropy_loss_backward.default, info.batch_size, in_dims, arguments), 0


def _batched(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    return tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _one_by_one(operator: Any, batch: int, in_dims: InDims, arguments: tuple[Any, ...]) -> Any:
    every_dim = (*in_dims, *(None,) * (len(arguments) - len(in_dims)))
    results = [
        operator(*(a if d is None else a.select(d, i) for a, d in zip(arguments, every_dim, strict=True)))
        for i in range(batch)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def _row_gradients(
    loss: Tensor | None, z_loss: Tensor | None, denominators: Tensor, terms: LossTerms, shape: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of reduced losses `[batch]` as those of unreduced rows, where loss = ce + z in each row."""
    if terms.reduction == NONE or (loss is None and z_loss is None):
        return loss, z_loss
    dtype = denominators.dtype
    ce = torch.zeros_like(denominators[:, 0]) if loss is None else loss.reshape(-1).to(dtype)
    z = ce if z_loss is None else ce + z_loss.reshape(-1).to(dtype)
    if terms.reduction == MEAN:
        ce, z = ce / denominators[:, 0], z / denominators[:, 1]
    return ce[:, None].expand(shape), (z - ce)[:, None].expand(shape) if terms.z_loss else None
