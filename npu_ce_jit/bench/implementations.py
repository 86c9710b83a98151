# SPDX-License-Identifier: Apache-2.0
"""The implementations that are measured: the three losses, and the peers of each. A new one is a row here.

Peers are imported, never copied. `load` raises where one is not installed, and some do not run on a CPU; both are
reported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from npu_ce_jit.api.cross_entropy import cross_entropy, npu_cross_entropy_loss
from npu_ce_jit.api.linear_cross_entropy import linear_cross_entropy
from npu_ce_jit.torch_compat import LinearCrossEntropyOptions

Loss = Callable[..., Any]

EAGER, COMPILED = "F.cross_entropy", "torch.compile"
TWO_STEPS, TWO_STEPS_COMPILED = "log_softmax + nll_loss", "torch.compile of both"
LINEAR_EAGER, LINEAR_TORCH = "F.linear + F.cross_entropy", "F.linear_cross_entropy"
CROSS_ENTROPY, IN_PLACE, DROP_IN, LINEAR = (
    "cross_entropy",
    "cross_entropy, in place",
    "npu_cross_entropy_loss",
    "linear_cross_entropy",
)
APPLE = "Apple CCE, torch_compile"
FOR_TIME, FOR_MEMORY = ", for time", ", for memory"
# torch's chunking: on a CPU, all rows in one chunk take the least time, and few rows in each the least memory.
_ALL_ROWS = LinearCrossEntropyOptions(batch_chunk_size=1 << 31, chunking_method=None)
_FEW_ROWS = LinearCrossEntropyOptions(batch_chunk_size=16, chunking_method=None, acc_policy="compact")


class Implementation(NamedTuple):
    name: str
    load: Callable[[], Loss]
    ours: bool = False
    compiles: bool = False  # for seconds, once for every shape
    timed: bool = True  # False: measured for memory alone, since chunks of few rows take many times as long
    device: str | None = None  # the only device type that it is for; None for all
    trains_only: bool = False  # without backward it is the same as another one


def _from(module: str, name: str, **options: Any) -> Callable[[], Loss]:
    return lambda: partial(getattr(import_module(module), name), **options)


def _log_softmax_and_nll(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    log_prob = F.log_softmax(x, 1)
    return F.nll_loss(log_prob, target), log_prob


def _linear_and_cross_entropy(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), target)


def _compiled(loss: Callable[[], Loss]) -> Callable[[], Loss]:
    return lambda: torch.compile(loss(), dynamic=False)


_LIGER = "liger_kernel.transformers.functional"
_TORCH_LINEAR = "torch.nn.functional", "linear_cross_entropy"
_CCE = "cut_cross_entropy", "linear_cross_entropy"

# In the order in which they are shown.
IMPLEMENTATIONS: dict[str, tuple[Implementation, ...]] = {
    "cross_entropy": (
        Implementation(CROSS_ENTROPY, lambda: cross_entropy, ours=True),
        Implementation(IN_PLACE, lambda: partial(cross_entropy, inplace_backward=True), ours=True, trains_only=True),
        Implementation(EAGER, lambda: F.cross_entropy),
        Implementation(COMPILED, _compiled(lambda: F.cross_entropy), compiles=True),
        Implementation("Liger", _from(_LIGER, "liger_cross_entropy")),
    ),
    "drop-in": (
        Implementation(DROP_IN, lambda: npu_cross_entropy_loss, ours=True),
        Implementation(TWO_STEPS, lambda: _log_softmax_and_nll),
        Implementation(TWO_STEPS_COMPILED, _compiled(lambda: _log_softmax_and_nll), compiles=True),
        Implementation("torch_npu's", lambda: torch.ops.npu.npu_cross_entropy_loss, device="npu"),
    ),
    "linear": (
        Implementation(LINEAR, lambda: linear_cross_entropy, ours=True),
        Implementation(
            LINEAR + FOR_MEMORY, lambda: partial(linear_cross_entropy, options=_FEW_ROWS), ours=True, timed=False
        ),
        Implementation(LINEAR + FOR_TIME, lambda: partial(linear_cross_entropy, options=_ALL_ROWS), ours=True),
        Implementation(LINEAR_EAGER, lambda: _linear_and_cross_entropy),
        Implementation(LINEAR_TORCH, _from(*_TORCH_LINEAR, options=_ALL_ROWS)),
        Implementation(LINEAR_TORCH + FOR_MEMORY, _from(*_TORCH_LINEAR, options=_FEW_ROWS), timed=False),
        Implementation("Apple CCE", _from(*_CCE, impl="cce")),
        Implementation(APPLE, _from(*_CCE, impl="torch_compile"), compiles=True),
        Implementation("Liger", _from(_LIGER, "liger_fused_linear_cross_entropy")),
    ),
}
# Where the versions of peers are found, by their names in package indexes.
PEER_PACKAGES = ("cut-cross-entropy", "liger-kernel", "triton")
