# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.patch.llamafactory`: the loss of models that LLaMA-Factory loads comes from hidden states."""

from __future__ import annotations

from typing import Any

from npu_ce_jit.errors import PatchError
from npu_ce_jit.patch.exchange import Patch, exchange, framework, require_parameters
from npu_ce_jit.patch.importers import everywhere
from npu_ce_jit.patch.transformers_models import transformers

_STUDIED = "0.9.5"
_STAGES = ("pt", "sft")  # whose trainers ask a model for its loss; the others read its logits


def llamafactory() -> Patch:
    """Applies `npu_ce_jit.patch.transformers` to each model that LLaMA-Factory loads for the stages pt and sft.

    Exchanges load_model, which every stage calls; models of other stages are as before. It does what
    `enable_liger_kernel: true` does for the loss, without Liger and Triton, and cannot be combined with it. After
    `undo()`, models that are loaded already keep their loss.

    Returns:
        The Patch that undoes it.

    Raises:
        PatchError: LLaMA-Factory is not installed, or its function is not the one that is known. From load_model: the
            model is not of the form that `npu_ce_jit.patch.transformers` knows, or enable_liger_kernel is set.

    Source: src/llamafactory/model/loader.py of LLaMA-Factory 0.9.5.
    """
    module = framework("llamafactory.model.loader", _STUDIED)
    parameters = "tokenizer, model_args, finetuning_args, is_trainable, add_valuehead"
    require_parameters("load_model", module.load_model, parameters, f"LLaMA-Factory {_STUDIED}")
    return exchange("npu_ce_jit.patch.llamafactory()", *everywhere(module, {"load_model": _load_model}))


def _load_model(
    theirs: Any,
    tokenizer: Any,
    model_args: Any,
    finetuning_args: Any,
    is_trainable: bool = False,
    add_valuehead: bool = False,
) -> Any:
    has_loss = is_trainable and not add_valuehead and finetuning_args.stage in _STAGES
    if has_loss and model_args.enable_liger_kernel:
        raise PatchError(
            "expected enable_liger_kernel: false with npu_ce_jit.patch.llamafactory(), got true.",
            "Leave it out, or keep it and call npu_ce_jit.patch.liger() instead: it answers what Liger's models call.",
        )
    model = theirs(tokenizer, model_args, finetuning_args, is_trainable, add_valuehead)
    if has_loss:
        transformers(model)
    return model
