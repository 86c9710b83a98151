# SPDX-License-Identifier: Apache-2.0
"""`vocab_parallel_token_logprobs`: the log-probability of each token, of logits whose classes a group shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.linear_cross_entropy import flat_rows
from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.api.token_logprobs import TokenLogprobs, sampled_terms
from npu_ce_jit.op import row_checks
from npu_ce_jit.op.autograd.functions import OPS, no_second_derivative
from npu_ce_jit.op.autograd.over_logits import OverLogits
from npu_ce_jit.op.autograd.token_logprobs import RowGradients, RowValues
from npu_ce_jit.op.distributed import vocab_parallel
from npu_ce_jit.op.distributed.targets import VocabRange
from npu_ce_jit.op.rows import OutputGrads, squared_probs
from npu_ce_jit.op.saved import require_unchanged, seen
from npu_ce_jit.op.schema import DOUBLED_LSE, ENTROPY, LossTerms
from npu_ce_jit.op.torch_private import is_differentiating
from npu_ce_jit.parallel.arguments import agreed, require_plain, required_group


def vocab_parallel_token_logprobs(
    local_logits: Tensor,
    target: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_sum_squared_probs: bool = False,
    inplace_backward: bool = False,
) -> Tensor | TokenLogprobs:
    """`npu_ce_jit.token_logprobs` of logits whose classes a group shares, as a column-parallel head leaves them.

    It has the collectives of `vocab_parallel_cross_entropy`; the second one also sums entropy and the sum of squares.
    The gradient of the sum of squares takes a second tensor of the logits' size for a moment.

    Args:
        local_logits, target, group: as for `vocab_parallel_cross_entropy`.
        temperature, softcap, ignore_index, return_entropy, return_sum_squared_probs: as for
            `npu_ce_jit.token_logprobs`; the same on every rank.
        inplace_backward: backward writes the gradient over local_logits, which must be contiguous; as for
            `npu_ce_jit.token_logprobs`.

    Returns:
        Log-probabilities `[...]` of the whole vocabulary, float32 (float64 for float64 logits), the same on every rank;
        with any `return_*`, a `TokenLogprobs`. Gradients are those of this rank's logits, to first order.

    Raises:
        As `npu_ce_jit.token_logprobs`, and as `vocab_parallel_cross_entropy` on the other ranks.

    Source: docs/distributed.md; vocab_parallel_entropy and its like in verl.
    """
    group = required_group(group)

    def check() -> _Call:
        require_plain(local_logits=local_logits, target=target)
        numbers = plain_numbers(temperature=temperature, softcap=softcap, ignore_index=ignore_index)
        row_checks.check_token_logprobs(local_logits, target, *numbers[:2], name="local_logits")
        if inplace_backward:
            row_checks.check_inplace_blocks(local_logits, [local_logits], "local_logits")
        outputs = (ENTROPY if return_entropy else 0) | (DOUBLED_LSE if return_sum_squared_probs else 0)
        return _Call(*flat_rows(local_logits, target), sampled_terms(*numbers), outputs)

    call, shard = agreed("vocab_parallel_token_logprobs", local_logits, group, check)
    found: RowValues = _VocabParallelTokenLogprobs.apply(  # type: ignore[no-untyped-call]
        call.input, call.target, call, group, shard, inplace_backward
    )
    logprobs, entropy, squares = (None if v is None else v.view(target.shape) for v in found)
    assert logprobs is not None
    return TokenLogprobs(logprobs, entropy, squares) if call.outputs else logprobs


class _Call(NamedTuple):
    input: Tensor
    target: Tensor
    terms: LossTerms
    outputs: int

    @property
    def classes(self) -> int:
        return self.input.shape[1]

    @property
    def weight(self) -> None:
        return None

    @property
    def shared(self) -> dict[str, object]:
        return {
            "return_entropy": bool(self.outputs & ENTROPY),
            "return_sum_squared_probs": bool(self.outputs & DOUBLED_LSE),
            "temperature": 1 / self.terms.logit_scale,
            "softcap": self.terms.softcap,
            "ignore_index": self.terms.ignore_index,
        }


class _VocabParallelTokenLogprobs(torch.autograd.Function):
    """Profilers and `grad_fn` show this name."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        call: _Call,
        group: dist.ProcessGroup,
        shard: VocabRange | None,
        inplace_backward: bool,
    ) -> RowValues:
        rows, shard = vocab_parallel.forward(input, target, None, call.terms, call.outputs, (group,), shard)
        not_ignored = target != call.terms.ignore_index
        squares = None
        if rows.doubled_stats is not None:
            squares = squared_probs(rows.row_stats, rows.doubled_stats, not_ignored)
        ctx.terms, ctx.group, ctx.seen = call.terms, group, seen(input, target)
        ctx.over_logits = OverLogits(input, inplace_backward)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            input, target, rows.row_stats, rows.target_weight, rows.entropy, rows.doubled_stats, squares, *shard
        )
        entropy = None if rows.entropy is None else torch.where(not_ignored, rows.entropy, 0)
        return 0 - rows.ce, entropy, squares

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        if all(g is None for g in grad_outputs) or not ctx.needs_input_grad[0]:
            return (None,) * 6
        ctx.over_logits.require_unspent()
        input, target, row_stats, target_weight, entropy, doubled_stats, squares, *of_shard = ctx.saved_tensors
        require_unchanged(ctx.seen, ("local_logits", "target"), (input, target))
        if is_differentiating(*grad_outputs, input) and not torch.compiler.is_compiling():
            raise no_second_derivative("vocab_parallel_token_logprobs", "npu_ce_jit.token_logprobs is")
        gradients = RowGradients.of(grad_outputs, squares, target != ctx.terms.ignore_index)
        in_place = ctx.over_logits.allowed(input)
        logits = input.detach()
        doubled = None
        if gradients.doubled_lse is not None and input.shape[1]:
            nowhere = torch.full_like(target, ctx.terms.ignore_index)
            doubled = OPS._backward.default(
                None, None, None, gradients.doubled_lse, None, logits, nowhere, None, doubled_stats, None,
                row_stats.new_ones(2), *ctx.terms.doubled(),
            )  # fmt: skip
        result = vocab_parallel.backward(
            OutputGrads(gradients.loss, None, None, gradients.lse, gradients.entropy), logits, target, None, row_stats,
            target_weight, entropy, row_stats.new_ones(2), ctx.terms, (ctx.group,), VocabRange(*of_shard),
            in_place=in_place,
        )  # fmt: skip
        if doubled is not None:
            result.add_(doubled)
        return (ctx.over_logits.spend(input) if in_place else result), *(None,) * 5
