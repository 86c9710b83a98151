# SPDX-License-Identifier: Apache-2.0
"""`token_logprobs`: the log-probability of each token, for reinforcement learning, preference losses, distillation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from npu_ce_jit.api.cross_entropy import OPS
from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.op import checks, row_checks
from npu_ce_jit.op.autograd.token_logprobs import RowValues, TokenLogprobsOfRows, Wanted, row_blocks
from npu_ce_jit.op.schema import NONE, LossTerms, accumulation_dtype
from npu_ce_jit.op.torch_private import is_differentiating, needs_registered_operators


class TokenLogprobs(NamedTuple):
    """What `token_logprobs` returns when any `return_*` is True; None for what was not asked for.

    Each is float32 (float64 for float64 logits), in the target's shape, differentiable, and 0 where ignored.
    """

    logprobs: Tensor
    entropy: Tensor | None
    sum_squared_probs: Tensor | None


# So that torch.export can save a program that returns one.
_pytree._register_namedtuple(TokenLogprobs, serialized_type_name="npu_ce_jit.TokenLogprobs")


def token_logprobs(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_sum_squared_probs: bool = False,
    inplace_backward: bool = False,
) -> Tensor | TokenLogprobs:
    """The log-probability of each target in softmax(logits / temperature), and what else RL asks of these rows.

    With softcap, of softmax(softcap * tanh(logits / softcap) / temperature): the model's own cap, then the sampler's
    temperature. One pass over the logits (two for the sum of squares); nothing of their size is made but the gradient,
    computed from them in backward.

    On a CPU a row's results and its gradient have the same bits wherever the row stands, among however many others, in
    logits of whatever strides, whole or in chunks. On an NPU too, up to 1024 classes: where rows are few, cores share
    longer ones, and then add up in another order.

    Args:
        logits: `[..., V]`, any number of leading dimensions; float16, bfloat16, float32 (and float64 on CPU). In eager
            mode rows may lie anywhere, as in `logits[:, :-1]`, `logits.transpose(0, 1)` or `logits[..., :vocab_size]`:
            they are copied only where a row's logits are not adjacent. Where they have no `[N, V]` view (the first of
            these three), backward copies them into the gradient.
        target: class indices `[...]`, int64 or int32, in `[0, V)` or equal to `ignore_index`.
        temperature: above 0.
        softcap: above 0, or None for none.
        ignore_index: rows with this target are 0 in every result, and so is their gradient, whatever their logits.
        return_entropy: return -sum(p log p) of each row, in nats.
        return_sum_squared_probs: return sum(p**2) of each row. In compiled code and under torch.func its gradient takes
            a second tensor of the logits' size for a moment.
        inplace_backward: backward writes the gradient over the logits instead of allocating it. Needs rows that lie
            side by side (in runs of many, as those of `logits[:, :-1]` do), eager mode, and one backward; another
            backward that has saved the logits raises. A plain read of them after backward gives the gradient. Under
            tracing, torch.func, checkpointing or create_graph the gradient is a new tensor.

    Returns:
        Log-probabilities `[...]`, float32 (float64 for float64 logits), differentiable to any order, autocast or not.
        With any `return_*`, a `TokenLogprobs`.

    Raises:
        TypeError: logits or target is no Tensor.
        NotImplementedError: logits are not of a supported floating dtype.
        ValueError: batch sizes differ.
        IndexError: on CPU, a target out of range. On NPU that row's log-probability and gradient are NaN.
        RuntimeError: everything else: shapes, V = 0, devices, dtypes, class probabilities as target, temperature or
            softcap not above 0 or not finite, inplace_backward on logits that do not allow it or were changed.

    Source: logprobs_from_logits, entropy_from_logits and their like in RL trainers for language models.
    """
    checks.require_tensor("logits", logits)
    checks.require_tensor("target", target)
    temperature, softcap, ignore_index = plain_numbers(
        temperature=temperature, softcap=softcap, ignore_index=ignore_index
    )
    row_checks.check_token_logprobs(logits, target, temperature, softcap)
    checks.check_has_classes("logits", logits, logits.shape[-1])
    terms = sampled_terms(temperature, softcap, ignore_index)
    wanted = Wanted(terms, return_entropy, return_sum_squared_probs, inplace_backward)
    # Leading dimensions go in the order of their strides: a transposed batch is read without a copy.
    order = [] if torch.compiler.is_compiling() else _by_stride(logits)
    moved = order != sorted(order)
    x, y = (logits.permute(*order, -1), target.permute(order)) if moved else (logits, target)
    if inplace_backward and not torch.compiler.is_compiling():
        row_checks.check_inplace_blocks(logits, row_blocks(x))
    try:
        found = (_composed if needs_registered_operators(x) else TokenLogprobsOfRows.apply)(x, y, wanted)
    except IndexError:
        # The kernels' error names a row of one block: raise again with its place in `target`.
        checks.require_targets_in_range(target, logits.shape[-1], ignore_index)
        raise
    if moved:
        back = sorted(range(len(order)), key=order.__getitem__)
        found = tuple(None if v is None else v.permute(back).contiguous() for v in found)
    return TokenLogprobs(*found) if return_entropy or return_sum_squared_probs else found[0]


def sampled_terms(temperature: float, softcap: float | None, ignore_index: int) -> LossTerms:
    """The temperature divides the capped logits: (cap / t) tanh((x / t) / (cap / t)) = cap tanh(x / cap) / t."""
    return LossTerms(NONE, ignore_index, 0.0, 0.0, (softcap or 0.0) / temperature, 1 / temperature)


def _composed(logits: Tensor, target: Tensor, wanted: Wanted) -> RowValues:
    """The same, composed of registered operators, which every transform can differentiate."""
    is_ignored = target == wanted.terms.ignore_index
    if (wanted.entropy or wanted.sum_squared_probs) and is_differentiating(logits):
        # 0 * NaN is NaN: an ignored row's logits may hold one.
        logits = torch.where(is_ignored[..., None], 0, logits)
    rows, dtype = logits.reshape(target.numel(), logits.shape[-1]), accumulation_dtype(logits.dtype)

    def of_rows(terms: LossTerms, return_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
        loss, _, lse, _, entropy = OPS.cross_entropy.default(
            rows, target.reshape(-1), None, "none", terms.ignore_index, softcap=terms.softcap or None,
            logit_scale=terms.logit_scale, return_lse=wanted.sum_squared_probs, return_entropy=return_entropy,
            loss_dtype=dtype,
        )  # fmt: skip
        return loss, lse, entropy

    loss, lse, entropy = of_rows(wanted.terms, wanted.entropy)
    squares = (of_rows(wanted.terms.doubled(), False)[1] - 2 * lse).exp() if wanted.sum_squared_probs else None
    beside = (entropy if wanted.entropy else None, squares)
    of_entropy, of_squares = (None if v is None else torch.where(is_ignored, 0, v.view(target.shape)) for v in beside)
    return (0 - loss).view(target.shape), of_entropy, of_squares


def _by_stride(logits: Tensor) -> list[int]:
    """The leading dimensions, by descending stride."""
    strides = logits.stride()
    return sorted(range(logits.dim() - 1), key=lambda dim: -strides[dim])
