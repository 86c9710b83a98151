# SPDX-License-Identifier: Apache-2.0
"""The three forms of the loss as modules that take only tensors, with expected results, for tracing and export."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from oracle import Options, truth
from saved_programs import outputs_and_gradient
from shapes import targets
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from npu_ce_jit import cross_entropy, linear_cross_entropy, npu_cross_entropy_loss

OPTIONS = Options(label_smoothing=0.1, z_loss=1e-3)
SOFTCAP = 20.0
FEATURES = 5


class FromLogits(nn.Module):
    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        output = cross_entropy(x, target, label_smoothing=0.1, z_loss=1e-3, softcap=SOFTCAP, return_lse=True)
        return output.loss, output.lse


class DropIn(nn.Module):
    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return npu_cross_entropy_loss(x, target, None, "mean", -100, 0.1, 1e-3, True)


class Linear(nn.Module):
    def forward(self, hidden: Tensor, linear_weight: Tensor, target: Tensor) -> tuple[Tensor]:
        return (linear_cross_entropy(hidden, linear_weight, target, label_smoothing=0.1, z_loss=1e-3),)


class Form(NamedTuple):
    """One form: its inputs for N rows and C classes, and which of their dimensions are N and C."""

    module: type[nn.Module]
    operator: str  # the form's only node of this package in a graph
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    sizes: tuple[dict[int, str], ...]
    expected: Callable[..., list[Tensor]]  # the module's outputs, from inputs in float64


def _cross_entropy(x: Tensor, target: Tensor) -> list[Tensor]:
    right = truth(x, target, None, OPTIONS._replace(softcap=SOFTCAP))
    return [right.loss, right.lse]


def _drop_in(x: Tensor, target: Tensor) -> list[Tensor]:
    right = truth(x, target, None, OPTIONS)
    return [right.loss[None], right.log_prob, right.z_loss[None], right.lse]


def _linear(hidden: Tensor, linear_weight: Tensor, target: Tensor) -> list[Tensor]:
    return [truth(hidden @ linear_weight.t(), target, None, OPTIONS).loss]


def _targets(rows: int, classes: int) -> Tensor:
    target = targets(rows, classes, 0.2)
    target[0] = 1  # the mean over ignored rows only would be NaN
    return target


def _logits(rows: int, classes: int) -> tuple[Tensor, ...]:
    return torch.randn(rows, classes, requires_grad=True), _targets(rows, classes)


def _hidden(rows: int, classes: int) -> tuple[Tensor, ...]:
    hidden, linear_weight = torch.randn(rows, FEATURES, requires_grad=True), torch.randn(classes, FEATURES)
    return hidden, linear_weight, _targets(rows, classes)


_N_C = ({0: "N", 1: "C"}, {0: "N"})
FORMS = {
    "cross_entropy": Form(FromLogits, "npu_ce_jit.cross_entropy.default", _logits, _N_C, _cross_entropy),
    "drop-in": Form(DropIn, "npu_ce_jit.npu_cross_entropy_loss.default", _logits, _N_C, _drop_in),
    "linear": Form(Linear, "npu_ce_jit.linear_cross_entropy.default", _hidden, ({0: "N"}, {0: "C"}, {0: "N"}), _linear),
}


def truth_of(form: Form, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs, and the gradient of the first with respect to the first input; in float64."""
    leaf, *others = (t.detach().cpu().double() if t.is_floating_point() else t.cpu() for t in inputs)
    return outputs_and_gradient(form.expected, (leaf.requires_grad_(), *others))


def assert_right(results: list[Tensor], form: Form, inputs: tuple[Tensor, ...]) -> None:
    """Checks `results` against `truth_of`."""
    torch.testing.assert_close(results, truth_of(form, inputs), check_dtype=False, rtol=1e-5, atol=1e-5)


def export(form: Form, inputs: tuple[Tensor, ...], strict: bool = False) -> ExportedProgram:
    """The form's exported program, with dynamic rows and classes."""
    sizes = {"N": Dim("N", min=2), "C": Dim("C", min=2)}
    dynamic = tuple({dim: sizes[name] for dim, name in names.items()} for names in form.sizes)
    return torch.export.export(form.module(), inputs, dynamic_shapes=dynamic, strict=strict)
