# SPDX-License-Identifier: Apache-2.0
"""Makes other packages' functions call ours: torch's and torch_npu's (`npu_ce_jit.install`), and those of frameworks
that have a loss of their own, with one function for each framework.

    npu_ce_jit.patch.transformers(model)  # a causal language model computes its loss from hidden states
    npu_ce_jit.patch.llamafactory()  # LLaMA-Factory's models for pre-training and fine-tuning, in the same way
    npu_ce_jit.patch.trl()  # trl's trainers score tokens with our kernels
    npu_ce_jit.patch.verl()  # verl's log-probabilities and entropies
    npu_ce_jit.patch.liger()  # Liger's cross entropy, in all the models that it patches
    npu_ce_jit.patch.veomni()  # VeOmni's chunked loss and log-probabilities
    npu_ce_jit.patch.swift()  # Megatron-SWIFT's log-probabilities and entropies
    npu_ce_jit.patch.fla()  # flash-linear-attention's losses
    npu_ce_jit.patch.megatron()  # Megatron-core's loss of logits that ranks share, MindSpeed's too

Each returns a `Patch`, which undoes it. A framework is imported by the function that patches it. No file here has a
framework's name: importing such a file would put it in the function's place in this package.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from npu_ce_jit.patch.exchange import Patch, in_effect
    from npu_ce_jit.patch.fla_losses import fla
    from npu_ce_jit.patch.liger_operators import liger
    from npu_ce_jit.patch.llamafactory_models import llamafactory
    from npu_ce_jit.patch.megatron_losses import megatron
    from npu_ce_jit.patch.swift_scores import swift
    from npu_ce_jit.patch.transformers_models import transformers
    from npu_ce_jit.patch.trl_scores import trl
    from npu_ce_jit.patch.veomni_chunks import veomni
    from npu_ce_jit.patch.verl_scores import verl

__all__ = [
    "Patch", "fla", "in_effect", "liger", "llamafactory", "megatron", "swift", "transformers", "trl", "veomni", "verl",
]  # fmt: skip
_LAZY = {
    "Patch": "exchange",
    "in_effect": "exchange",
    "fla": "fla_losses",
    "liger": "liger_operators",
    "llamafactory": "llamafactory_models",
    "megatron": "megatron_losses",
    "swift": "swift_scores",
    "transformers": "transformers_models",
    "trl": "trl_scores",
    "veomni": "veomni_chunks",
    "verl": "verl_scores",
}


def __getattr__(name: str) -> _Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
