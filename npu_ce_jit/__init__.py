# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy loss for PyTorch on CPU and Ascend NPU; the kernels are compiled when this is first imported."""

import sys as _sys
from importlib import import_module as _import_module
from sys import modules as _modules
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from npu_ce_jit import bootstrap as _bootstrap
from npu_ce_jit._version import __version__

_bootstrap.run(load=not _bootstrap.is_command_line(_sys.orig_argv))

from npu_ce_jit.api.cross_entropy import (  # noqa: E402  the operators must be defined before they are looked up
    CrossEntropyOutput,
    cross_entropy,
    npu_cross_entropy_loss,
    npu_cross_entropy_loss_backward,
)

if _TYPE_CHECKING:
    from npu_ce_jit import patch
    from npu_ce_jit.api.causal_lm import causal_lm_loss
    from npu_ce_jit.api.distill import linear_kl_div, linear_selected_logprobs, linear_topk_logprobs
    from npu_ce_jit.api.linear_cross_entropy import linear_cross_entropy
    from npu_ce_jit.api.linear_token_logprobs import linear_token_logprobs
    from npu_ce_jit.api.modules import CrossEntropyLoss, LinearCrossEntropyLoss
    from npu_ce_jit.api.token_logprobs import TokenLogprobs, token_logprobs
    from npu_ce_jit.fake_npu import register_fake_npu
    from npu_ce_jit.interactive.notebook import build_log, info
    from npu_ce_jit.interactive.rebuild import rebuild
    from npu_ce_jit.op.tracing.decompositions import decompositions
    from npu_ce_jit.patch.switch import install, installed, uninstall
    from npu_ce_jit.torch_compat import LinearCrossEntropyOptions

__all__ = [
    "CrossEntropyLoss",
    "CrossEntropyOutput",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyOptions",
    "TokenLogprobs",
    "__version__",
    "build_log",
    "causal_lm_loss",
    "cross_entropy",
    "decompositions",
    "info",
    "install",
    "installed",
    "linear_cross_entropy",
    "linear_kl_div",
    "linear_selected_logprobs",
    "linear_token_logprobs",
    "linear_topk_logprobs",
    "npu_cross_entropy_loss",
    "npu_cross_entropy_loss_backward",
    "patch",
    "rebuild",
    "register_fake_npu",
    "token_logprobs",
    "uninstall",
]
# The module of each name, for __getattr__; the imports above are for type checkers and IDEs. Importing them all would
# double the package's import time.
_LAZY = {
    "CrossEntropyLoss": "api.modules",
    "LinearCrossEntropyLoss": "api.modules",
    "LinearCrossEntropyOptions": "torch_compat",
    "TokenLogprobs": "api.token_logprobs",
    "build_log": "interactive.notebook",
    "causal_lm_loss": "api.causal_lm",
    "decompositions": "op.tracing.decompositions",
    "info": "interactive.notebook",
    "install": "patch.switch",
    "installed": "patch.switch",
    "linear_cross_entropy": "api.linear_cross_entropy",
    "linear_kl_div": "api.distill",
    "linear_selected_logprobs": "api.distill",
    "linear_token_logprobs": "api.linear_token_logprobs",
    "linear_topk_logprobs": "api.distill",
    "rebuild": "interactive.rebuild",
    "register_fake_npu": "fake_npu",
    "token_logprobs": "api.token_logprobs",
    "uninstall": "patch.switch",
}


def __getattr__(name: str) -> _Any:  # a name that is never used adds nothing to the import time
    if name == "patch":
        return _import_module(f"{__name__}.patch")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"{__name__}.{_LAZY[name]}"
    try:
        # To import what is imported takes a lock in Python 3.10, which a forked child would find held.
        return getattr(_modules[module], name)
    except (KeyError, AttributeError):  # never imported, or another thread is importing it
        return getattr(_import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
