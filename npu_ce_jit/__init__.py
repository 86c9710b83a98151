# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy loss for PyTorch on CPU and Ascend NPU; the kernels are compiled when this is first imported."""

import sys as _sys

from npu_ce_jit import bootstrap as _bootstrap
from npu_ce_jit._version import __version__

_bootstrap.run(load=not _bootstrap.is_command_line(_sys.orig_argv))

from npu_ce_jit.op.function import (  # noqa: E402  the operators must be defined before they are looked up
    CrossEntropyOutput,
    cross_entropy,
    npu_cross_entropy_loss,
    npu_cross_entropy_loss_backward,
)
from npu_ce_jit.op.modules import CrossEntropyLoss  # noqa: E402

__all__ = [
    "CrossEntropyLoss",
    "CrossEntropyOutput",
    "__version__",
    "cross_entropy",
    "npu_cross_entropy_loss",
    "npu_cross_entropy_loss_backward",
]
