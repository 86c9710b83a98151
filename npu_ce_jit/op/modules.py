# SPDX-License-Identifier: Apache-2.0
"""nn.Module forms of the public functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.op.function import CrossEntropyOutput, cross_entropy


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` over `npu_ce_jit.cross_entropy`.

    Takes the constructor's arguments of torch's, and every keyword of `npu_ce_jit.cross_entropy`; shapes, dtypes and
    errors are that function's.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        options = {name: keywords.pop(name) for name in _OPTIONS if name in keywords}
        super().__init__(*arguments, **keywords)
        self.options = options

    def forward(self, input: Tensor, target: Tensor) -> Tensor | CrossEntropyOutput:  # type: ignore[override]
        return cross_entropy(
            input, target, self.weight, self.reduction, self.ignore_index, self.label_smoothing, **self.options
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


_OPTIONS = tuple(cross_entropy.__kwdefaults__ or ())
