# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities from hidden states over ranks that share the head: numbers, also compiled, and errors."""

from __future__ import annotations

import time
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from linear_outputs import log_probabilities
from ranks import run_on_ranks
from test_vocab_linear import layer, small_chunks
from torch import Tensor

ALL = {"return_entropy": True, "return_sum_squared_probs": True}


def total(values: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return sum((n + 1.5) * v.square().sum() for n, v in enumerate(values))  # type: ignore[return-value]


def check_numbers(rank: int, sizes: tuple[int, ...]) -> None:
    from npu_ce_jit.parallel import vocab_parallel_linear_token_logprobs

    def call(
        x: Tensor, w: Tensor, b: Tensor, y: Tensor, temperature: float, softcap: float | None
    ) -> tuple[Tensor, ...]:
        return vocab_parallel_linear_token_logprobs(
            x, w, y, local_linear_bias=b, temperature=temperature, softcap=softcap, ignore_index=3, **ALL
        )

    small_chunks()
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for options, form in product(((1.0, None), (0.6, 5.0)), (call, compiled)):
        tensors, target, _ = layer(torch.float64, 3)
        leaves = [t.detach().requires_grad_() for t in (tensors[0], tensors[1][own], tensors[2][own])]
        found = form(leaves[0].view(1, *leaves[0].shape), *leaves[1:], target[None], *options)
        gradients = torch.autograd.grad(total(found), leaves)
        true = [t.detach().requires_grad_() for t in tensors]
        right = log_probabilities(F.linear(*true), target, *options, 3)
        right_gradients = torch.autograd.grad(total(right), true)
        torch.testing.assert_close([v[0] for v in found], right)
        torch.testing.assert_close(gradients, (right_gradients[0], right_gradients[1][own], right_gradients[2][own]))


def check_refusals(rank: int) -> None:
    """An error on one rank is an error on both, in seconds: each would otherwise wait for the other in a collective."""
    from npu_ce_jit.parallel import vocab_parallel_linear_cross_entropy, vocab_parallel_linear_token_logprobs

    x, w, y = torch.randn(4, 6), torch.randn(5, 6), torch.randint(10, (4,))
    begin = time.monotonic()
    for arguments, own, others in (
        ((x, w[:, : 6 - rank], y), r"expected linear_weight whose last dimension", r"error on 1 of 2 ranks; rank 1"),
        ((x[: 4 - rank], w, y[: 4 - rank]), r"number of rows 4 \(rank 0\), 3 \(rank 1\)", None),
    ):
        for function in (vocab_parallel_linear_cross_entropy, vocab_parallel_linear_token_logprobs):
            with pytest.raises(RuntimeError, match=own if rank == 1 or others is None else others):
                function(*arguments)
    with pytest.raises(RuntimeError, match=r"got temperature 1\.0 \(rank 0\), 0\.5 \(rank 1\)$"):
        vocab_parallel_linear_token_logprobs(x, w, y, temperature=1.0 / (rank + 1))
    assert time.monotonic() - begin < 30
    # The weights of all classes give the same loss as this rank's own.
    weight = torch.arange(10.0)
    losses = [
        vocab_parallel_linear_cross_entropy(torch.ones(4, 6), torch.ones(5, 6), torch.tensor([0, 3, 7, 9]), weight=each)
        for each in (weight, weight[5 * rank : 5 * rank + 5])
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(losses[0], torch.tensor(10.0).log())


def check_two_ranks(rank: int) -> None:
    check_numbers(rank, (5, 8))
    check_refusals(rank)


@pytest.mark.feature("log-probabilities and entropy from hidden states")
def test_two_ranks():
    run_on_ranks(2, check_two_ranks)


@pytest.mark.exhaustive
def test_four_ranks():
    run_on_ranks(4, check_numbers, (4, 0, 3, 6))
