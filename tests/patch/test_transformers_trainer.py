# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer takes the same steps with a patched model as without, including accelerate's wrapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import batch, tiny
from probes import needs_frameworks

import npu_ce_jit

pytestmark = [needs_frameworks("transformers", "accelerate"), pytest.mark.filterwarnings("ignore::FutureWarning")]


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, rows: int) -> None:
        self.batch = batch(rows)

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: tensor[row] for name, tensor in self.batch.items()}


def accuracy(prediction: Any) -> dict[str, float]:
    predicted, labels = prediction.predictions[:, :-1].argmax(-1), prediction.label_ids[:, 1:]
    return {"accuracy": float((predicted == labels)[labels != -100].mean())}


CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"bf16": True},
    "accumulated": {"gradient_accumulation_steps": 3},
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_it_takes_the_same_steps(case: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    found = []
    for patched in (False, True):
        torch._dynamo.reset()
        model = tiny()
        patch = npu_ce_jit.patch.transformers(model) if patched else None
        options = {"max_steps": 20, **CASES[case]}
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True, **options,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=Rows(50), eval_dataset=Rows(9), compute_metrics=accuracy
        )
        trainer.train()
        evaluated = trainer.evaluate()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        found.append([*losses, evaluated["eval_loss"], evaluated["eval_accuracy"]])
        if patch is not None:
            assert patch.is_in_effect(), repr(patch)
            if case == "bfloat16":
                with pytest.warns(RuntimeWarning, match="got accelerate.utils.operations.convert_outputs_to_fp32"):
                    patch.undo()
            else:
                patch.undo()
            assert not patch.is_in_effect()
    assert found[0][-3] < 0.95 * found[0][0]
    assert found[1] == pytest.approx(found[0], rel=5e-3 if case == "bfloat16" else 1e-5)
