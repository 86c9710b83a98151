# SPDX-License-Identifier: Apache-2.0
"""torch_npu's three fused operators, by their documentation, against the one function here that replaces them.

npu_fused_linear_online_max_sum, npu_fused_cross_entropy_loss_with_max_sum and
npu_fused_linear_cross_entropy_loss_with_max_sum_backward of CANN 9.0 are steps, between which the caller runs
collectives. None of them is a loss, so none is redirected. Their formulas are written out here.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_on_ranks
from torch import Tensor

ROWS, FEATURES, SHARE = 13, 7, 19  # SHARE: classes of a rank


def online_max_sum(input: Tensor, weight: Tensor, target: Tensor, start: int, end: int) -> tuple[Tensor, ...]:
    """For this rank's classes: the max, the sum of exp(x - max), the target's x - max, whether the target is on another
    rank (one bit a row in the operator), and the target's local index. `end` is the last class, inclusive."""
    logits = F.linear(input, weight).float()
    greatest = logits.amax(-1)
    shifted = logits - greatest[:, None]
    elsewhere = (target < start) | (target > end)
    here = torch.where(elsewhere, 0, target - start)
    predicted = torch.where(elsewhere, 0, shifted.gather(-1, here[:, None])[:, 0])
    return greatest, shifted.exp().sum(-1), predicted, elsewhere, here


def loss_with_max_sum(sums: Tensor, predicted: Tensor) -> Tensor:
    return sums.log() - predicted


def backward_with_max_sum(
    grad: Tensor, input: Tensor, weight: Tensor, elsewhere: Tensor, here: Tensor, greatest: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    of_logits = (F.linear(input, weight).float() - greatest[:, None]).exp() / sums[:, None]
    of_logits[torch.arange(len(here)), here] -= (~elsewhere).float()
    of_logits *= grad[:, None]
    return of_logits @ weight, of_logits.t() @ input


def check(rank: int) -> None:
    from npu_ce_jit.parallel import vocab_parallel_linear_cross_entropy

    torch.manual_seed(3)
    input, weight = torch.randn(ROWS, FEATURES), torch.randn(2 * SHARE, FEATURES)
    target, grad = torch.randint(2 * SHARE, (ROWS,)), torch.rand(ROWS)
    start, own = rank * SHARE, weight[rank * SHARE :][:SHARE]
    greatest, sums, predicted, elsewhere, here = online_max_sum(input, own, target, start, start + SHARE - 1)
    of_all = greatest.clone()
    dist.all_reduce(of_all, dist.ReduceOp.MAX)
    sums *= (greatest - of_all).exp()
    predicted += torch.where(elsewhere, 0, greatest - of_all)
    for numbers in (sums, predicted):
        dist.all_reduce(numbers)
    loss = loss_with_max_sum(sums, predicted)
    grad_input, grad_weight = backward_with_max_sum(grad, input, own, elsewhere, here, of_all, sums)
    dist.all_reduce(grad_input)

    leaves = [t.clone().requires_grad_() for t in (input, own)]
    ours = vocab_parallel_linear_cross_entropy(*leaves, target, reduction="none")
    found = [ours, *torch.autograd.grad(ours, leaves, grad)]
    torch.testing.assert_close(found, [loss, grad_input, grad_weight], rtol=1e-5, atol=1e-5)


def test_one_call_does_what_the_three_do_with_their_collectives() -> None:
    run_on_ranks(2, check)
