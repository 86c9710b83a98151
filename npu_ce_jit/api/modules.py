# SPDX-License-Identifier: Apache-2.0
"""nn.Module forms of the public functions."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from npu_ce_jit import torch_compat
from npu_ce_jit.api.cross_entropy import CrossEntropyOutput, cross_entropy
from npu_ce_jit.api.linear_cross_entropy import linear_cross_entropy


def _refuse_scripting(module: torch.nn.Module) -> NoReturn:
    raise RuntimeError(
        f"expected a module of torch's for torch.jit.script, got npu_ce_jit.{type(module).__name__}: it cannot be "
        "scripted; use torch.compile or torch.export, or torch.nn's module of that name in what you script"
    )


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

    __prepare_scriptable__ = _refuse_scripting

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


_OPTIONS = tuple(cross_entropy.__kwdefaults__ or ())


class LinearCrossEntropyLoss(torch_compat.LinearCrossEntropyLoss):
    """`torch.nn.LinearCrossEntropyLoss` over `npu_ce_jit.linear_cross_entropy`.

    Takes the constructor's arguments of torch's, and every keyword of `npu_ce_jit.linear_cross_entropy`; shapes, dtypes
    and errors are that function's. The layer is `linear`, as in torch's.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        loss_options = {name: keywords.pop(name) for name in _LINEAR_OPTIONS if name in keywords}
        super().__init__(*arguments, **keywords)
        self.loss_options = loss_options

    def forward(self, input: Tensor, target: Tensor) -> Tensor | CrossEntropyOutput:  # type: ignore[override]
        layer, bias = self.linear, self.linear.bias
        shape = (self.num_classes, *self.out_features)
        return linear_cross_entropy(
            input,
            layer.weight.reshape(*shape, layer.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            **self.loss_options,
        )

    __prepare_scriptable__ = _refuse_scripting

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *(f"{name}={value!r}" for name, value in self.loss_options.items())])


# torch's constructor takes these.
_OF_TORCH = ("linear_bias", "weight", "reduction", "ignore_index", "label_smoothing", "options")
_LINEAR_OPTIONS = tuple(name for name in linear_cross_entropy.__kwdefaults__ or () if name not in _OF_TORCH)
