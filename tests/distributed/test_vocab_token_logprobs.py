# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities over the ranks of a group: against the float64 formula, and against verl's formulas."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from collectives import Watched
from ranks import run_on_ranks
from torch import Tensor

import npu_ce_jit

ALL = {"return_entropy": True, "return_sum_squared_probs": True}
SIZES = {2: ((5, 8), (40, 0), (64, 65)), 4: ((3, 1, 2, 9), (0, 70, 0, 3))}


def of_verl(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """verl's vocab_parallel_log_probs_from_logits, vocab_parallel_entropy and vocab_parallel_sum_pi_squared, on one
    rank.

    Computed as in verl: entropy as log-sum-exp minus the mean logit, the sum of squares from the softmax.
    """
    logits_max = logits.max(-1, keepdim=True).values
    normalized = logits - logits_max
    exps = normalized.exp()
    sum_exps = exps.sum(-1, keepdim=True)
    softmax = exps / sum_exps
    entropy = logits_max + sum_exps.log() - (softmax * logits).sum(-1, keepdim=True)
    logprobs = normalized.gather(-1, labels[..., None])[..., 0] - sum_exps[..., 0].log()
    return logprobs, entropy[..., 0], (softmax * softmax).sum(-1)


def factors_of(values: Tensor, which: int) -> Tensor:
    return 1 + (which + torch.arange(values.numel()).view(values.shape)) % 5


def check_numbers(rank: int, of_ranks: tuple[tuple[int, ...], ...]) -> None:
    from npu_ce_jit.parallel import vocab_parallel_token_logprobs

    for sizes, dtype, softcap in product(of_ranks, (torch.float32, torch.bfloat16, torch.float64), (None, 5.0)):
        torch.manual_seed(len(sizes))
        start, classes = sum(sizes[:rank]), sum(sizes)
        own = slice(start, start + sizes[rank])
        logits = (torch.randn(3, 5, classes, dtype=torch.float64) * 3).to(dtype)
        target = torch.randint(classes, (3, 5))
        target[1, ::2] = -1
        logits[1, 2] = torch.nan
        counts = target != -1
        local = logits[..., own].clone().requires_grad_()
        kinds = {"temperature": 0.6, "softcap": softcap, "ignore_index": -1}
        with Watched() as watched:
            found = vocab_parallel_token_logprobs(local, target, **kinds, **ALL)
        assert [name for name, _ in watched.collectives] == ["all_reduce"] * 3
        true = torch.where(counts[..., None], logits, 0).double().requires_grad_()
        x = true if softcap is None else softcap * torch.tanh(true / softcap)
        truth = of_verl(x / 0.6, torch.where(counts, target, 0))
        expected = [torch.where(counts, v, 0) for v in truth]
        for ours, exact in zip(found, expected, strict=True):
            assert ours.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
            torch.testing.assert_close(ours.double(), exact, rtol=3e-6, atol=5e-6)
        (gradient,) = torch.autograd.grad(sum((v * factors_of(v, i)).sum() for i, v in enumerate(found)), local)
        (of_all,) = torch.autograd.grad(sum((v * factors_of(v, i)).sum() for i, v in enumerate(expected)), true)
        # Two roundings of up to 2 * 5 / 0.6 each.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), of_all[..., own], rtol=eps, atol=5e-5 + 34 * eps)

        one = vocab_parallel_token_logprobs(local, target, **kinds)
        torch.testing.assert_close(one, found.logprobs, rtol=1e-6, atol=1e-6)  # it adds in another order
        (plain,) = torch.autograd.grad(one.sum(), local)
        whole = logits.clone().requires_grad_()
        npu_ce_jit.token_logprobs(whole, target, **kinds).sum().backward()
        close = {"rtol": 4e-6, "atol": 1e-5} if dtype is not torch.bfloat16 else {"rtol": eps, "atol": 1e-5}
        torch.testing.assert_close(plain, whole.grad[..., own], **close)


@pytest.mark.feature("log-probabilities and entropy over ranks that share the vocabulary")
@pytest.mark.parametrize("ranks", [2, 4])
def test_numbers_are_those_of_verl_in_float64(ranks):
    run_on_ranks(ranks, check_numbers, SIZES[ranks])


def check_in_place(rank: int) -> None:
    from npu_ce_jit.parallel import vocab_parallel_token_logprobs

    logits, target = torch.randn(4, 3, 20), torch.randint(40, (4, 3))
    target[2] = -100
    plain, leaf = (logits.clone().requires_grad_() for _ in range(2))
    for x, in_place in (plain, False), (leaf, True):
        values = x * 1
        found = vocab_parallel_token_logprobs(values, target, inplace_backward=in_place, **ALL)
        sum((v * factors_of(v, i)).sum() for i, v in enumerate(found)).backward(retain_graph=in_place)
        if in_place:
            assert torch.equal(values, x.grad)
            with pytest.raises(RuntimeError, match="expected one backward with inplace_backward=True"):
                found.logprobs.sum().backward()
    assert torch.equal(plain.grad, leaf.grad)
    with pytest.raises(RuntimeError, match=r"expected local_logits whose rows lie side by side"):
        vocab_parallel_token_logprobs(leaf[:, 1:], target[:, 1:], inplace_backward=True)
    with pytest.raises(RuntimeError, match=r"expected temperature finite and above 0, got 0\.0"):
        vocab_parallel_token_logprobs(leaf, target, temperature=0.0)
    with pytest.raises(IndexError, match=r"target\[4\] = 40 is out of bounds for 40 classes"):
        vocab_parallel_token_logprobs(leaf, torch.where(torch.arange(12).view(4, 3) == 4, 40, target))
    found = vocab_parallel_token_logprobs(plain, target)
    with pytest.raises(NotImplementedError, match="create_graph=True"):
        torch.autograd.grad(found.sum(), plain, create_graph=True)


def check_compile(rank: int) -> None:
    from npu_ce_jit.parallel import vocab_parallel_token_logprobs

    def call(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return vocab_parallel_token_logprobs(logits, target, temperature=0.7, **ALL)

    target, logits = torch.randint(11, (4, 3)), torch.randn(4, 3, 5 + rank)
    target[2] = -100
    results = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        found = function(leaf, target)
        sum((v * factors_of(v, i)).sum() for i, v in enumerate(found)).backward()
        results.append((*(v.detach() for v in found), leaf.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def check_two_ranks(rank: int) -> None:
    check_in_place(rank)
    check_compile(rank)


def test_in_place_errors_and_compile():
    run_on_ranks(2, check_two_ranks)
