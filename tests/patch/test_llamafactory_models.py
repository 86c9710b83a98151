# SPDX-License-Identifier: Apache-2.0
"""LLaMA-Factory's load_model, patched. Stand-ins for its modules have its signature, its call of Liger, its importers.

Written after src/llamafactory/model/loader.py, model/model_utils/liger_kernel.py and train/sft/workflow.py of
LLaMA-Factory 0.9.5, which needs an older trl than the other frameworks here.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from frameworks import batch, gradients, require_close, tiny
from probes import needs_frameworks
from switch_tools import by_ours

import npu_ce_jit
from npu_ce_jit.errors import PatchError

pytestmark = needs_frameworks("transformers")


def load_model(
    tokenizer: Any, model_args: Any, finetuning_args: Any, is_trainable: bool = False, add_valuehead: bool = False
) -> Any:
    return tiny(model_args.model_name_or_path)


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The workflow module of the stage sft, which has imported load_model by name."""
    names = ("llamafactory", "llamafactory.model", "llamafactory.model.loader", "llamafactory.train.sft.workflow")
    modules = {name: ModuleType(name) for name in names}
    for name in names[1:]:
        modules[name].load_model = load_model  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules[names[-1]]


def loaded(workflow: ModuleType, stage: str = "sft", *more: bool, liger: bool = False) -> Any:
    arguments = SimpleNamespace(model_name_or_path="llama", enable_liger_kernel=liger)
    return workflow.load_model(None, arguments, SimpleNamespace(stage=stage), *more)


def patched(model: Any) -> bool:
    return any(
        "transformers" in repr(patch) and patch._exchanges[0].owner is model for patch in npu_ce_jit.patch.in_effect()
    )


def test_models_of_pt_and_sft_have_their_loss_from_hidden_states(workflow: ModuleType) -> None:
    expected = gradients(plain := loaded(workflow, "sft", True), lambda: plain(**batch()).loss)
    with npu_ce_jit.patch.llamafactory() as patch:
        assert patch.is_in_effect()
        assert npu_ce_jit.patch.llamafactory() is patch
        model = loaded(workflow, "sft", True)
        assert patched(loaded(workflow, "pt", True))
    found = gradients(model, lambda: by_ours(lambda: model(**batch()).loss))
    require_close(found, expected, 2e-5)
    assert workflow.load_model is load_model
    assert not patched(loaded(workflow, "sft", True))


def test_what_trains_no_loss_of_the_model_is_as_before(workflow: ModuleType) -> None:
    with npu_ce_jit.patch.llamafactory():
        for stage, *more in (("dpo", True), ("sft", False), ("rm", True, True), ("ppo", True, True)):
            assert not patched(loaded(workflow, stage, *more)), stage


def test_ligers_switch_is_refused_and_another_signature(workflow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with npu_ce_jit.patch.llamafactory():
        with pytest.raises(PatchError, match=r"expected enable_liger_kernel: false .*npu_ce_jit.patch.liger\(\)"):
            loaded(workflow, "sft", True, liger=True)
        loaded(workflow, "dpo", True, liger=True)
    monkeypatch.setattr(sys.modules["llamafactory.model.loader"], "load_model", lambda model_args: None)
    with pytest.raises(PatchError, match=r"as LLaMA-Factory .*, got load_model\(model_args\)"):
        npu_ce_jit.patch.llamafactory()
