# SPDX-License-Identifier: Apache-2.0
"""`vocab_parallel_cross_entropy` as Megatron uses it: `[s, b, V/tp]`, in place, its smoothing; and all weights."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from collectives import Watched
from oracle import Options, truth
from ranks import run_on_ranks
from torch import Tensor

from npu_ce_jit.bench.timing import peak_allocated

SIZES = {2: ((5, 8), (40, 0)), 3: ((3, 1, 9),)}


def of_megatron(logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Megatron's _VocabParallelCrossEntropy on one rank with all classes. `[s, b]`"""
    classes = logits.shape[-1]
    logits = logits - logits.max(-1, keepdim=True).values
    exp_logits = logits.exp()
    sum_exp_logits = exp_logits.sum(-1)
    loss = sum_exp_logits.log() - logits.gather(-1, target[..., None])[..., 0]
    smoothing = label_smoothing * classes / (classes - 1)
    log_probs = (exp_logits / sum_exp_logits[..., None]).log()
    return (1.0 - smoothing) * loss - smoothing * log_probs.mean(-1)


def check_smoothing(rank: int, of_ranks: tuple[tuple[int, ...], ...]) -> None:
    from npu_ce_jit.parallel import vocab_parallel_cross_entropy

    for sizes, dtype, compiles in product(of_ranks, (torch.float32, torch.bfloat16), (False, True)):
        torch._dynamo.reset()
        torch.manual_seed(1)
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        logits, target = (torch.randn(5, 3, sum(sizes)) * 3).to(dtype), torch.randint(sum(sizes), (5, 3))

        def call(x: Tensor, y: Tensor) -> Tensor:
            options: dict[str, Any] = {"reduction": "none", "loss_dtype": torch.float32}
            return vocab_parallel_cross_entropy(
                x, y, label_smoothing=0.3, label_smoothing_formula="megatron", **options
            )

        if compiles and min(sizes):  # a rank without classes would compile a graph of its own
            call = torch.compile(call, fullgraph=True, backend="aot_eager")
        local, true = logits[..., own].clone().requires_grad_(), logits.double().requires_grad_()
        factors = torch.rand(5, 3) + 0.5
        loss, expected = call(local, target), of_megatron(true, target, 0.3)
        assert loss.shape == (5, 3)
        torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=5e-6)
        (loss * factors).sum().backward()
        (expected * factors).sum().backward()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(local.grad.double(), true.grad[..., own], rtol=eps, atol=4 * eps)


@pytest.mark.feature("Megatron's smoothing over ranks")
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_smoothing_of_megatron_over_all_classes(ranks):
    run_on_ranks(ranks, check_smoothing, SIZES[ranks])


def check_weights(rank: int, of_ranks: tuple[tuple[int, ...], ...]) -> None:
    """The weights of all classes give the result of the rank's own, with and without the ranks' checks."""
    from npu_ce_jit.parallel import arguments, vocab_parallel_cross_entropy

    options = Options(label_smoothing=0.2, z_loss=0.1)
    for sizes, tells in product(of_ranks, (True, False)):
        torch.manual_seed(2)
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        logits, target = torch.randn(7, sum(sizes)) * 3, torch.randint(sum(sizes), (7,))
        weight, reference = torch.rand(sum(sizes)) + 0.1, []
        if not tells:
            arguments._ranks_tell = lambda *_: False  # as on an NPU
        for w in (weight[own], weight):
            local = logits[:, own].clone().requires_grad_()
            with Watched() as watched:
                loss = vocab_parallel_cross_entropy(local, target, weight=w, **options.as_dict())
            assert len(watched.collectives) == (3 if tells else 2 + (len(w) != own.stop - own.start)), tells
            loss.backward()
            reference.append((loss.detach(), local.grad))
        torch.testing.assert_close(*reference, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(reference[1][0].double(), truth(logits.double(), target, weight, options).loss)


@pytest.mark.parametrize("ranks", [2, 3])
def test_weights_of_all_classes(ranks):
    run_on_ranks(ranks, check_weights, SIZES[ranks][:1])


def check_in_place(rank: int) -> None:
    from npu_ce_jit.parallel import vocab_parallel_cross_entropy

    rows, classes = (16, 4), 3000
    for dtype, smoothing in product((torch.float32, torch.bfloat16), (0.0, 0.1)):
        torch.manual_seed(3)
        target = torch.randint(2 * classes, rows)
        target[2, 1] = -100
        logits = torch.randn(*rows, classes).to(dtype)

        def step(
            in_place: bool, logits: Tensor = logits, target: Tensor = target, smoothing: float = smoothing
        ) -> tuple[Tensor, Tensor]:
            leaf = logits.detach().requires_grad_()
            loss = vocab_parallel_cross_entropy(
                leaf, target, label_smoothing=smoothing, inplace_backward=in_place, loss_dtype=torch.float32
            )
            return leaf, torch.autograd.grad(loss, leaf)[0]

        size = logits.numel() * logits.element_size()
        _, expected = step(False)
        assert peak_allocated(lambda step=step: step(True), warm_up=False) < 0.1 * size
        assert torch.equal(logits, expected)  # the logits are overwritten
    logits = torch.randn(4, 3, classes, requires_grad=True) * 1
    target = torch.randint(2 * classes, (4, 3))
    loss = vocab_parallel_cross_entropy(logits, target, inplace_backward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="expected one backward with inplace_backward=True, got a second"):
        loss.backward()
    with pytest.raises(RuntimeError, match="expected local_logits whose rows lie side by side"):
        vocab_parallel_cross_entropy(logits[:, 1:], target[:, 1:], inplace_backward=True)


def test_in_place_it_takes_no_memory():
    run_on_ranks(2, check_in_place)
