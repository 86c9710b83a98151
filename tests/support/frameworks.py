# SPDX-License-Identifier: Apache-2.0
"""Tiny models of frameworks for the tests of npu_ce_jit.patch, with batches and steps. Imports frameworks lazily."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import npu_ce_jit

VOCAB, HIDDEN, ROWS, LENGTH = 1003, 48, 3, 19

_SHAPE = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Name in the tests -> prefix of transformers' classes, and what differs from the shape above.
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "gemma2, softcap": ("Gemma2", {"head_dim": 12, "final_logit_softcapping": 1.5}),
    "cohere, logit_scale": ("Cohere", {"logit_scale": 0.3}),
    "granite, logits_scaling": ("Granite", {"logits_scaling": 3.0}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "mixtral, router loss": (
        "Mixtral",
        {"num_local_experts": 2, "output_router_logits": True, "experts_implementation": "eager"},
    ),
    "phi, bias": ("Phi", {}),
}
KINDS = (*_KINDS, "gpt2, tied")


def tiny(kind: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A causal language model of transformers, with the same weights at each call."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(1)
    if kind == "gpt2, tied":
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, **dropouts
        )
        return transformers.GPT2LMHeadModel(config).to(dtype)
    prefix, more = _KINDS[kind]
    config = getattr(transformers, f"{prefix}Config")(**{**_SHAPE, **more, **options})
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    head = model.get_output_embeddings()
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return model.to(dtype)


def batch(rows: int = ROWS, seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (rows, LENGTH), generator=generator)
    labels = ids.clone()
    labels[:, :4] = labels[-1, -3:] = -100
    return {"input_ids": ids, "labels": labels}


def losses_of_steps(model: Any, steps: int = 20) -> list[float]:
    """The losses of plain gradient descent, because an optimizer that normalises gradients could hide a wrong scale."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.5), []
    for step in range(steps):
        loss = model(**batch(seed=step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor]:
    """The loss, and the gradient of each parameter that has one."""
    model.zero_grad()
    value = loss()
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def pair(kind: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """An unpatched model, and a patched one with the same weights."""
    theirs, ours = (tiny(kind, dtype) for _ in range(2))
    npu_ce_jit.patch.transformers(ours, **options)
    return theirs, ours


def require_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Compares each pair of tensors by the norm of their difference."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm()
