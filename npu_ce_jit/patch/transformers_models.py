# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.patch.transformers`: causal language models of transformers compute their loss from hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from npu_ce_jit.api.causal_lm import causal_lm_loss, next_labels, over_items
from npu_ce_jit.errors import PatchError
from npu_ce_jit.log import warn
from npu_ce_jit.patch.deferred_logits import DeferredLogits, head_forward, heads
from npu_ce_jit.patch.exchange import Change, Patch, beneath, exchange, framework, name_of, require_parameters

_STUDIED = "5.24.0"


def transformers(model: Any, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Patch:
    """Makes a causal language model of transformers compute its loss by `linear_cross_entropy`, without logits.

    Where the model is called with labels, its loss comes from the hidden states and the output head, and
    `outputs.logits` are computed when they are first used, which must be before the optimizer's step. Called without
    labels it is as before. Factors and a softcap that the model applies to its logits become options of the loss; any
    other operation on them computes the logits, and the loss is then `causal_lm_loss` of those, without a float32 copy.
    The same holds for a model that torch.compile compiles as a whole.

    Call it before the model is prepared, wrapped or compiled, and after its head has its final size; pass a PeftModel
    as it is. A copy of the model (copy.deepcopy) is patched too.

    Args:
        model: a PreTrainedModel with an output head and transformers' loss of causal language models, or a PeftModel
            around one.
        label_smoothing, z_loss: as for `npu_ce_jit.cross_entropy`. TrainingArguments(label_smoothing_factor=...) gives
            the same loss, but a Trainer then takes it from logits.

    Returns:
        The Patch that undoes it.

    Raises:
        PatchError: the model, or this transformers, is not of the form that is known.

    Source: ForCausalLMLoss, PreTrainedModel.loss_function and the causal language models of transformers 5.24.
    """
    loss_utils = framework("transformers.loss.loss_utils", _STUDIED)
    parameters = "logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs"
    require_parameters("ForCausalLMLoss", loss_utils.ForCausalLMLoss, parameters, f"transformers {_STUDIED}")
    model = _plain_model(model)
    _require_known_forward(model, loss_utils.ForCausalLMLoss)
    head = _head_of(model)

    def loss(_theirs: Callable[..., Tensor], logits: Any, labels: Any, *sizes: Any, **keywords: Any) -> Tensor:
        return _loss(logits, labels, *sizes, **keywords, label_smoothing=label_smoothing, z_loss=z_loss)

    changes = [Change(model, "forward", _model_forward)]
    changes.append(Change(model, "_loss_function", loss, default=loss_utils.ForCausalLMLoss))  # behind a property
    if head is not None:
        changes.append(Change(head, "forward", head_forward))
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    given = "".join(f", {name}={value!r}" for name, value in options.items() if value)
    return exchange(f"npu_ce_jit.patch.transformers({type(model).__name__}{given})", *changes)


def _plain_model(model: Any) -> Any:
    """The PreTrainedModel that `model` is, or that is inside a PeftModel."""
    if isinstance(model, framework("transformers.modeling_utils", _STUDIED).PreTrainedModel):
        return model
    if type(model).__module__.partition(".")[0] == "peft" and hasattr(model, "get_base_model"):
        return _plain_model(model.get_base_model())
    raise PatchError(
        f"expected a PreTrainedModel of transformers, or a PeftModel around one, got {name_of(type(model))}.",
        "Pass the model as transformers made it, before it is compiled or wrapped for data parallel training.",
    )


def _require_known_forward(model: Any, causal_lm: Any) -> None:
    loss = beneath(model.loss_function)
    if loss is not causal_lm:
        raise PatchError(
            f"expected a {type(model).__name__} whose loss_function is transformers' ForCausalLMLoss, "
            f"got {name_of(loss)}.",
            "Take your own loss away before (del model._loss_function); other losses than that one are not replaced.",
        )
    forwards = [inspect.unwrap(vars(base)["forward"]) for base in type(model).__mro__ if "forward" in vars(base)]
    if not any("loss_function" in getattr(forward, "__code__", forward).co_names for forward in forwards[:-1]):
        raise PatchError(
            f"expected a {type(model).__name__} whose forward calls self.loss_function, got one that does not.",
            "Call npu_ce_jit.linear_cross_entropy in its forward, or npu_ce_jit.install() for its F.cross_entropy.",
        )


def _head_of(model: Any) -> nn.Linear | None:
    """The layer that makes the logits; None, with a warning, where its forward is not nn.Linear's."""
    head = model.get_output_embeddings()
    if head is None:
        raise PatchError(
            f"expected a {type(model).__name__} with an output head, got None from its get_output_embeddings().",
            "Set one with model.set_output_embeddings(nn.Linear(...)).",
        )
    if model.tp_size not in (None, 1):
        raise PatchError(
            f"expected a {type(model).__name__} with a whole output head, got one that {model.tp_size} ranks share.",
            "Leave its head out of the tp_plan, or call npu_ce_jit.parallel.vocab_parallel_linear_cross_entropy.",
        )
    if hasattr(head, "modules_to_save"):  # of peft: a copy of the head, which is trained in its place
        head = head.modules_to_save[head.active_adapter]
    if isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward:
        return head
    warn(
        f"npu_ce_jit: expected a plain nn.Linear for the output head of {type(model).__name__}, got "
        f"{name_of(type(head))}: its logits are made, and the loss is taken from them. To go without, leave the head "
        "out of the quantization or of the adapter (peft: modules_to_save=['lm_head'] trains it whole)."
    )
    return None


def _model_forward(theirs: Callable[..., Any], _model: Any, *arguments: Any, **keywords: Any) -> Any:
    if torch.compiler.is_compiling():
        return theirs(*arguments, **keywords)
    has_labels = keywords.get("labels") is not None or keywords.get("shift_labels") is not None
    with heads(DeferredLogits.of if has_labels else None):
        return theirs(*arguments, **keywords)


def _loss(
    logits: Any,
    labels: Any,
    vocab_size: int | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    *,
    label_smoothing: float,
    z_loss: float,
    **_ignored: Any,
) -> Tensor:
    """`causal_lm_loss`, from hidden states where the logits are not computed yet."""
    if not isinstance(logits, DeferredLogits) or logits.is_made() or vocab_size not in (None, logits.shape[-1]):
        made = logits.whole() if isinstance(logits, DeferredLogits) else logits
        return causal_lm_loss(
            made, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels,
            label_smoothing=label_smoothing, z_loss=z_loss,
        )  # fmt: skip
    loss = logits.loss(
        next_labels(labels, shift_labels, ignore_index).to(logits.device),
        reduction="mean" if num_items_in_batch is None else "sum",
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        loss_dtype=torch.float32,
    )
    return over_items(loss, num_items_in_batch)
