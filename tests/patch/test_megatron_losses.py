# SPDX-License-Identifier: Apache-2.0
"""Megatron-core's losses with the patch, against themselves without."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from probes import needs_frameworks
from ranks import run_on_ranks
from switch_tools import by_ours, runs_ours
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.errors import PatchError

pytestmark = needs_frameworks("megatron")

SHARE = 103  # classes of a rank
S, B = 7, 3


def modules() -> tuple[Any, Any, Any]:
    """The modules that define the functions, have imported one, and define the fused one."""
    from megatron.core import tensor_parallel
    from megatron.core.fusions import fused_cross_entropy
    from megatron.core.tensor_parallel import cross_entropy

    return cross_entropy, tensor_parallel, fused_cross_entropy


def own_group() -> Any:
    import megatron.core.parallel_state as mpu

    mpu._TENSOR_MODEL_PARALLEL_GROUP = group = dist.group.WORLD
    mpu._MPU_TENSOR_MODEL_PARALLEL_RANK = mpu._MPU_TENSOR_MODEL_PARALLEL_WORLD_SIZE = None
    return group


def with_gradient(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.linspace(-1, 2, loss.numel()).view(loss.shape)
    return loss.detach(), torch.autograd.grad(loss, logits, weights)[0]


def require_near(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], of_gradient: float) -> None:
    for one, other, tolerance in zip(found, truth, (2e-6, of_gradient), strict=True):
        assert one.shape == other.shape
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm()


def _losses_on_a_rank(rank: int, ranks: int) -> None:
    group = own_group()
    own = slice(rank * SHARE, (rank + 1) * SHARE)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 4e-3)):
        logits = (3 * torch.randn(S, B, ranks * SHARE)).to(dtype)[..., own].contiguous().requires_grad_()
        target = torch.randint(ranks * SHARE, (B, S)).t().contiguous()
        plain, importer, fused = modules()

        def their(smoothing: float) -> tuple[Tensor, Tensor]:
            copy = logits.detach().float().requires_grad_()  # theirs overwrites float32 logits  # noqa: B023
            return with_gradient(plain.vocab_parallel_cross_entropy(copy * 1, target, smoothing), copy)  # noqa: B023

        truth, smoothed = their(0.0), their(0.1)
        for patch in (npu_ce_jit.patch.megatron, lambda: npu_ce_jit.patch.megatron(inplace_backward=True)):
            with patch():
                for call in (
                    lambda x: plain.vocab_parallel_cross_entropy(x, target),  # noqa: B023
                    lambda x: importer.vocab_parallel_cross_entropy(x, target, label_smoothing=0.0),  # noqa: B023
                    lambda x: fused.fused_vocab_parallel_cross_entropy(x, target, group),  # noqa: B023
                ):
                    found = by_ours(lambda: with_gradient(call(logits * 1), logits))  # noqa: B023
                    assert (found[0].dtype, found[1].dtype) == (torch.float32, dtype)
                    require_near(found, truth, tolerance)
                padded = torch.where(target < 50, -1, target)
                loss, gradient = with_gradient(plain.vocab_parallel_cross_entropy(logits * 1, padded), logits)
                assert loss[padded < 0].count_nonzero() == gradient[padded < 0].count_nonzero() == 0
                require_near((loss[padded >= 0], gradient[padded >= 0]),
                             (truth[0][padded >= 0], truth[1][padded >= 0]), tolerance)  # fmt: skip
                _require_smoothing(lambda: plain.vocab_parallel_cross_entropy(logits.float() * 1, target, 0.1),  # noqa: B023
                                   logits, smoothed, ranks, tolerance)  # fmt: skip
            assert not runs_ours(lambda: importer.vocab_parallel_cross_entropy(logits * 1, target))[1]  # noqa: B023


def _require_smoothing(call: Any, logits: Tensor, truth: Any, ranks: int, tolerance: float) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, ours = runs_ours(lambda: with_gradient(call(), logits))
    require_near(found, truth, tolerance)
    assert ours == (ranks == 1)
    said = [str(one.message) for one in caught if "label_smoothing" in str(one.message)]
    assert len(said) == (ranks > 1)
    assert all("expected label_smoothing 0 where 2 ranks share the classes, got 0.1" in one for one in said)


@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_and_gradients_are_theirs(ranks: int) -> None:
    run_on_ranks(ranks, _losses_on_a_rank, ranks)


def _written_over(rank: int) -> list[bool]:
    own_group()
    kept = []
    for options in ({}, {"inplace_backward": True}):
        logits = torch.randn(S, B, SHARE, requires_grad=True) * 1
        before = logits.detach().clone()
        with npu_ce_jit.patch.megatron(**options):
            modules()[0].vocab_parallel_cross_entropy(logits, torch.randint(SHARE, (S, B))).sum().backward()
        kept.append(torch.equal(before, logits.detach()))
    return kept


def test_the_gradient_lies_over_the_logits_where_it_is_asked_for() -> None:
    assert run_on_ranks(1, _written_over) == [[True, False]]


def _with_group(rank: int) -> None:
    """With the signature in NVIDIA/Megatron-LM at d98e8a64, megatron/core/tensor_parallel/cross_entropy.py."""
    mine = own_group()
    plain, _, _ = modules()

    def vocab_parallel_cross_entropy(
        vocab_parallel_logits: Tensor, target: Tensor, label_smoothing: float = 0.0, tp_group: Any = None
    ) -> Any:
        return label_smoothing, tp_group

    plain.vocab_parallel_cross_entropy = vocab_parallel_cross_entropy
    logits, target = torch.randn(S, B, SHARE), torch.randint(2 * SHARE, (S, B))
    with npu_ce_jit.patch.megatron():
        loss = by_ours(lambda: plain.vocab_parallel_cross_entropy(logits, target, tp_group=mine))
        assert loss.shape == (S, B)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert plain.vocab_parallel_cross_entropy(logits, target, 0.2, mine) == (0.2, mine)


def test_the_function_that_takes_a_group() -> None:
    run_on_ranks(2, _with_group)


def test_another_megatron_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _, fused = modules()
    monkeypatch.setattr(fused, "fused_vocab_parallel_cross_entropy", lambda logits, labels: None)
    with pytest.raises(PatchError, match=r"target, tp_group\), as Megatron-core .*\(logits, labels\)"):
        npu_ce_jit.patch.megatron()
    assert plain.vocab_parallel_cross_entropy.__module__ == plain.__name__
    assert plain.vocab_parallel_cross_entropy.__code__.co_filename == plain.__file__
