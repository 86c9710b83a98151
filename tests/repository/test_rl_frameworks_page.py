# SPDX-License-Identifier: Apache-2.0
"""docs/rl-frameworks.md: its blocks run, each with the framework that it names."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from pages import code_of, needs_the_pages
from probes import needs_frameworks, needs_import
from ranks import run_on_ranks
from torch import nn

import npu_ce_jit

pytestmark = needs_the_pages

PAGE = "rl-frameworks.md"
VOCAB, HIDDEN = 101, 24


def block(framework: str) -> str:
    (code,) = [one for one in code_of(PAGE) if f"patch.{framework}()" in one]
    return code


def _run(rank: int, framework: str) -> list[str]:
    """Each framework in a process of its own: a patch of the page lasts until the process ends."""
    os.environ["TRITON_INTERPRET"] = "1"
    shape = (3, 7)
    names: dict[str, Any] = {
        "model": nn.Sequential(nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB)),
        "head": nn.Linear(HIDDEN, VOCAB),
        "hidden": torch.randn(*((21,) if framework == "liger" else shape), HIDDEN, requires_grad=True),
        "local_logits": torch.randn(*shape, VOCAB, requires_grad=True),
        "tokens": torch.randint(VOCAB, shape),
        "labels": torch.randint(VOCAB, (21,) if framework == "liger" else shape),
        "advantages": torch.randn(shape),
        "loss_mask": torch.ones(shape),
        "temperature": 0.7,
        "print": lambda *values: None,
    }
    if framework in ("megatron", "swift"):
        import megatron.core.parallel_state as mpu

        mpu._TENSOR_MODEL_PARALLEL_GROUP = torch.distributed.group.WORLD
    with torch.profiler.profile() as profile:
        exec(block(framework), names)
    parts = (*names["model"].parameters(), names["hidden"], names["local_logits"])
    assert any(part.grad is not None for part in parts)
    assert any("npu_ce_jit" in event.key or "VocabParallel" in event.key for event in profile.key_averages())
    return [str(patch) for patch in npu_ce_jit.patch.in_effect()]


@pytest.mark.parametrize(
    "framework",
    [
        pytest.param("verl", marks=needs_frameworks("verl")),
        pytest.param("liger", marks=needs_frameworks("liger_kernel", "triton")),
        pytest.param("megatron", marks=needs_frameworks("megatron")),
        pytest.param("veomni", marks=needs_import("veomni.ops.kernels.cross_entropy")),
        pytest.param("swift", marks=needs_import("swift.megatron.trainers.vocab_parallel_utils")),
        pytest.param("fla", marks=needs_frameworks("fla", "triton")),
    ],
)
def test_blocks_run(framework: str) -> None:
    ((patch,),) = run_on_ranks(1, _run, framework)
    assert patch.startswith(f"<npu_ce_jit.patch.{framework}(): ")
    assert "not in effect" not in patch


def test_each_line_of_the_table_has_a_block() -> None:
    for framework in ("verl", "liger", "llamafactory", "megatron", "veomni", "swift", "fla"):
        assert callable(getattr(npu_ce_jit.patch, framework))
        assert block(framework)
