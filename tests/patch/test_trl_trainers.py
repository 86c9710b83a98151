# SPDX-License-Identifier: Apache-2.0
"""trl's trainers for unpaired preferences and for rewards take the same steps with the patch as without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import batch, tiny
from probes import needs_frameworks
from word_tokenizer import text, word_tokenizer

import npu_ce_jit

pytestmark = [needs_frameworks("trl", "datasets"), pytest.mark.filterwarnings("ignore")]
STEPS = 6


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Rewards a completion for its number of different tokens."""
    return [len({token % 7 for token in ids}) / 7 for ids in completion_ids]


def arguments(kind: str) -> dict[str, Any]:
    """The arguments that only this kind of trainer needs."""
    ids = torch.cat([batch(seed=seed)["input_ids"] for seed in range(8)])
    prompts = [text(row[:5]) for row in ids]
    if kind == "KTO":
        completions = [text(row[5:]) for row in ids]
        labels = [bool(row[5] % 2) for row in ids]
        return {"data": {"prompt": prompts, "completion": completions, "label": labels}, "ref_model": tiny()}
    sampling = {"num_generations": 2, "max_completion_length": 7, "temperature": 0.9, "beta": 0.0}
    return {"data": {"prompt": prompts}, "reward_funcs": reward, "options": sampling}


def steps(kind: str, folder: Path) -> tuple[list[list[float]], Any]:
    """The logged values of each step, and the model."""
    import trl
    from datasets import Dataset

    more = arguments(kind)
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=4, logging_steps=1, report_to=[],
        save_strategy="no", use_cpu=True, bf16=False, learning_rate=3e-3, disable_tqdm=True,
        gradient_checkpointing=False, **more.pop("options", {}),
    )  # fmt: skip
    model = tiny()
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model, args=config, train_dataset=Dataset.from_dict(more.pop("data")),
        processing_class=word_tokenizer(), **more,
    )  # fmt: skip
    torch.manual_seed(3)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return [[row[name] for name in ("loss", "grad_norm", "entropy") if name in row] for row in logged], model


@pytest.mark.parametrize("kind", ["KTO", "GRPO", "RLOO"])
def test_the_steps_of_a_trainer(kind: str, tmp_path: Path) -> None:
    theirs, model = steps(kind, tmp_path)
    with npu_ce_jit.patch.trl(), torch.profiler.profile() as profile:
        ours, patched = steps(kind, tmp_path)
    assert "npu_ce_jit::_linear" in {event.name for event in profile.events()}
    assert len(theirs) == len(ours) == STEPS
    assert all(len(row) >= 2 and row[1] > 0 for row in theirs)
    for found, expected in zip(ours, theirs, strict=True):
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-5)
    for one, other in zip(patched.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-4)
