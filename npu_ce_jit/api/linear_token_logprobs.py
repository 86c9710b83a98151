# SPDX-License-Identifier: Apache-2.0
"""`linear_token_logprobs`: the log-probability of each token, and its distribution's entropy, from hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_ce_jit.api.linear_cross_entropy import call_operator
from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.api.token_logprobs import TokenLogprobs, sampled_terms
from npu_ce_jit.op.checks import require_tensor
from npu_ce_jit.op.row_checks import check_temperature
from npu_ce_jit.op.schema import LossTerms, accumulation_dtype


def linear_token_logprobs(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_sum_squared_probs: bool = False,
) -> Tensor | TokenLogprobs:
    """`token_logprobs(F.linear(input, linear_weight, linear_bias), target, ...)` without the `[..., V]` logits.

    The logits are made a chunk of rows at a time, forward and backward, as `npu_ce_jit.linear_cross_entropy` makes
    them; rows that are ignored take part in no product on a CPU, and the host waits for nothing on an NPU. The sum of
    squares, exp(lse(2x) - 2 lse(x)) here, takes each product once more.

    A row's bits depend on the matrix product, which may add in another order for another number of rows: the same call
    gives the same bits; other chunks give results that differ by a product's rounding.

    Args:
        input: hidden states `[..., in_features]`, any number of leading dimensions; float16, bfloat16, float32 (and
            float64 on CPU).
        linear_weight: the head's `[V, in_features]`, of the input's dtype, unless autocast casts both.
        target: class indices `[...]`, int64 or int32, in `[0, V)` or equal to `ignore_index`.
        linear_bias: `[V]`.
        temperature, softcap, ignore_index, return_entropy, return_sum_squared_probs: as for
            `npu_ce_jit.token_logprobs`.

    Returns:
        Log-probabilities `[...]`, float32 (float64 for float64 hidden states), differentiable to any order; 0 and
        without a gradient where ignored. With any `return_*`, a `TokenLogprobs`.

    Raises:
        As `npu_ce_jit.linear_cross_entropy`; RuntimeError for a temperature that is not above 0 or not finite.

    Source: FusedLinearForPPO of verl and its like in other RL trainers.
    """
    for name, value in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        require_tensor(name, value)
    temperature, softcap, ignore_index = plain_numbers(
        temperature=temperature, softcap=softcap, ignore_index=ignore_index
    )
    check_temperature(temperature)
    terms = sampled_terms(temperature, softcap, ignore_index)
    return logprobs_of_operator(
        input, linear_weight, target, linear_bias, terms, return_entropy, return_sum_squared_probs
    )


def logprobs_of_operator(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    terms: LossTerms,
    return_entropy: bool,
    return_sum_squared_probs: bool,
    group: str | None = None,
) -> Tensor | TokenLogprobs:
    """The log-probabilities by `linear_cross_entropy`'s operator, in one process or over the ranks of `group`."""

    def of_rows(terms: LossTerms, *, lse: bool, entropy: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        found = call_operator(
            input, linear_weight, target, linear_bias, None, accumulation_dtype(input.dtype),
            reduction="none", ignore_index=terms.ignore_index, softcap=terms.softcap or None,
            logit_scale=terms.logit_scale, return_z_loss=False, return_lse=lse, return_argmax=False,
            return_entropy=entropy, skip_ignored=True, group=group,
        )  # fmt: skip
        return found.loss, found.lse, found.entropy

    loss, lse, entropy = of_rows(terms, lse=return_sum_squared_probs, entropy=return_entropy)
    logprobs = 0 - loss  # 0, not -0, where ignored
    if not return_entropy and not return_sum_squared_probs:
        return logprobs
    squares = None
    if return_sum_squared_probs:
        _, doubled_lse, _ = of_rows(terms.doubled(), lse=True, entropy=False)
        assert lse is not None and doubled_lse is not None
        squares = torch.where(target == terms.ignore_index, 0, (doubled_lse - 2 * lse).exp())
    return TokenLogprobs(logprobs, entropy, squares)
