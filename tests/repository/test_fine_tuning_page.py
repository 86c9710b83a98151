# SPDX-License-Identifier: Apache-2.0
"""Runs each block of docs/fine-tuning.md unchanged, on a new tiny model, with the frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import batch, tiny
from pages import code_of, needs_the_pages
from probes import needs_frameworks
from word_tokenizer import text, word_tokenizer

import npu_ce_jit

pytestmark = [
    needs_the_pages,
    needs_frameworks("transformers", "accelerate", "peft", "trl", "datasets"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("block", code_of("fine-tuning.md"))
def test_a_block_runs_and_trains_by_ours(block: str, tmp_path: Path) -> None:
    import trl
    from datasets import Dataset
    from transformers import TrainingArguments

    options: dict[str, Any] = {
        "output_dir": str(tmp_path), "max_steps": 2, "report_to": [], "use_cpu": True, "save_strategy": "no",
        "disable_tqdm": True,
    }  # fmt: skip
    rows, is_trl = batch(8), "trl" in block
    names: dict[str, Any] = {
        "model": tiny(),
        "batch": batch(),
        "tokenizer": word_tokenizer(),
        "args": trl.SFTConfig(bf16=False, **options) if is_trl else TrainingArguments(**options),
        "dataset": Dataset.from_dict(
            {"text": [text(row) for row in rows["input_ids"]]} if is_trl else {n: t.tolist() for n, t in rows.items()}
        ),
    }
    before = npu_ce_jit.patch.in_effect()
    with torch.profiler.profile() as profile:
        exec(block, names)
    assert "npu_ce_jit::_linear" in {event.name for event in profile.events()}
    for patch in npu_ce_jit.patch.in_effect():
        if patch not in before:
            patch.undo()
