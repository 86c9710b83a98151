# SPDX-License-Identifier: Apache-2.0
"""Megatron-SWIFT's function with the patch, against itself without, and against float64 on whole logits."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from probes import needs_import
from ranks import run_on_ranks
from switch_tools import by_ours
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.errors import PatchError

MODULE = "swift.megatron.trainers.vocab_parallel_utils"
pytestmark = needs_import(MODULE)

SHARE = 103  # classes of a rank


def exact(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logp = logits.log_softmax(-1)
    picked = logp.gather(-1, labels.clamp(0)[..., None]).squeeze(-1)
    return torch.where(labels == -100, 0, picked), -(logp.exp() * logp).sum(-1)


def _on_a_rank(rank: int, ranks: int) -> None:
    import megatron.core.parallel_state as mpu

    mpu._TENSOR_MODEL_PARALLEL_GROUP = dist.group.WORLD
    mpu._MPU_TENSOR_MODEL_PARALLEL_RANK = mpu._MPU_TENSOR_MODEL_PARALLEL_WORLD_SIZE = None
    module: Any = importlib.import_module(MODULE)
    function = module.compute_logps_and_entropy_from_logits
    own = slice(rank * SHARE, (rank + 1) * SHARE)
    whole = (3 * torch.randn(2, 7, ranks * SHARE)).double().requires_grad_()
    labels = torch.randint(ranks * SHARE, (2, 7))
    labels[:, ::3] = -100
    local = whole.detach()[..., own].float().requires_grad_()
    truth = exact(whole, labels)
    weights = torch.linspace(-1, 2, labels.numel()).view(labels.shape)
    (true_gradient,) = torch.autograd.grad([truth[0] + 0.5 * truth[1]], whole, weights.double())
    theirs = function(local.detach().clone(), labels, True)
    with npu_ce_jit.patch.swift() as patch:
        assert npu_ce_jit.patch.swift() is patch
        logprobs, entropy = by_ours(lambda: module.compute_logps_and_entropy_from_logits(local, labels, True))
        assert module.compute_logps_and_entropy_from_logits(local, labels)[1] is None
    assert module.compute_logps_and_entropy_from_logits is function
    (gradient,) = torch.autograd.grad(logprobs + 0.5 * entropy, local, weights)
    found = (logprobs, entropy, logprobs, entropy, gradient)
    for one, true in zip(found, (*truth, *theirs, true_gradient[..., own]), strict=True):
        assert one.dtype == torch.float32
        assert one.shape == true.shape
        assert (one.double() - true).norm() <= 3e-6 * true.double().norm()


@pytest.mark.parametrize("ranks", [1, 2])
def test_scores_are_theirs_and_gradients_true(ranks: int) -> None:
    run_on_ranks(ranks, _on_a_rank, ranks)


def test_another_swift_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(MODULE)
    monkeypatch.setattr(module, "compute_logps_and_entropy_from_logits", lambda logits: None)
    with pytest.raises(PatchError, match=r"as ms-swift .*, got compute_logps_and_entropy_from_logits\(logits\)"):
        npu_ce_jit.patch.swift()
