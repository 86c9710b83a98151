# SPDX-License-Identifier: Apache-2.0
"""`vocab_parallel_linear_token_logprobs`: tokens' log-probabilities, from hidden states and a head that ranks share."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.linear_token_logprobs import logprobs_of_operator
from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.api.token_logprobs import TokenLogprobs, sampled_terms
from npu_ce_jit.op.row_checks import check_temperature
from npu_ce_jit.parallel.arguments import LinearCall, agreed, require_plain, required_group


def vocab_parallel_linear_token_logprobs(
    input: Tensor,
    local_linear_weight: Tensor,
    target: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    local_linear_bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_sum_squared_probs: bool = False,
) -> Tensor | TokenLogprobs:
    """`npu_ce_jit.linear_token_logprobs` over a head whose classes a group shares.

    It has the collectives of `vocab_parallel_linear_cross_entropy`; the sum of squares takes all of them twice.

    Args:
        input, local_linear_weight, target, group, local_linear_bias: as for `vocab_parallel_linear_cross_entropy`.
        temperature, softcap, ignore_index, return_entropy, return_sum_squared_probs: as for
            `npu_ce_jit.token_logprobs`; the same on every rank.

    Returns:
        As `npu_ce_jit.linear_token_logprobs`: of the whole vocabulary, the same on every rank.

    Raises:
        As `npu_ce_jit.linear_token_logprobs`, and as `vocab_parallel_cross_entropy` on the other ranks.

    Source: docs/distributed.md; FusedLinearForPPO and vocab_parallel_entropy of verl.
    """
    group = required_group(group)

    def check() -> LinearCall:
        require_plain(input=input, local_linear_weight=local_linear_weight, target=target)
        numbers = plain_numbers(temperature=temperature, softcap=softcap, ignore_index=ignore_index)
        check_temperature(numbers[0])
        terms = sampled_terms(*numbers)
        options: dict[str, object] = {
            **dict(zip(("temperature", "softcap", "ignore_index"), numbers, strict=True)),
            "return_entropy": return_entropy,
            "return_sum_squared_probs": return_sum_squared_probs,
        }
        return LinearCall.checked(input, local_linear_weight, target, local_linear_bias, None, terms, options)

    call, _ = agreed("vocab_parallel_linear_token_logprobs", input, group, check)
    return logprobs_of_operator(
        input, local_linear_weight, target, local_linear_bias, call.terms, return_entropy, return_sum_squared_probs,
        group.group_name,
    )  # fmt: skip
