# SPDX-License-Identifier: Apache-2.0
"""The operators' schemas, and the two tuples that carry their options.

The schemas are defined in Python, so that Meta, export and vmap work without a compiled library, which only adds
kernels.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

NAMESPACE = "npu_ce_jit"

_LOSS_TERMS = "int reduction, int ignore_index, float label_smoothing, float z_loss, float softcap, float logit_scale"
_GRADIENTS = "Tensor? grad_loss, Tensor? grad_z_loss, Tensor? grad_log_prob, Tensor? grad_lse, Tensor? grad_entropy"
_SAVED = "Tensor target, Tensor? weight, Tensor row_stats, Tensor? entropy, Tensor denominators"

SCHEMAS = {
    "npu_cross_entropy_loss": (
        '(Tensor input, Tensor target, Tensor? weight=None, str reduction="mean", int ignore_index=-100, '
        "float label_smoothing=0.0, float lse_square_scale_for_zloss=0.0, bool return_zloss=False) "
        "-> (Tensor loss, Tensor log_prob, Tensor zloss, Tensor lse_for_zloss)"
    ),
    "npu_cross_entropy_loss_backward": (
        "(Tensor grad_loss, Tensor log_prob, Tensor target, Tensor? weight=None, Tensor? grad_zloss=None, "
        'Tensor? lse_for_zloss=None, str reduction="mean", int ignore_index=-100, float label_smoothing=0.0, '
        "float lse_square_scale_for_zloss=0.0) -> Tensor"
    ),
    "cross_entropy": (
        '(Tensor input, Tensor target, Tensor? weight=None, str reduction="mean", int ignore_index=-100, '
        "float label_smoothing=0.0, float z_loss=0.0, bool return_z_loss=False, float? softcap=None, "
        "float logit_scale=1.0, bool return_lse=False, bool return_argmax=False, bool return_entropy=False, "
        "ScalarType? loss_dtype=None, bool inplace_backward=False) "
        "-> (Tensor loss, Tensor z_loss, Tensor lse, Tensor argmax, Tensor entropy)"
    ),
    "linear_cross_entropy": (
        "(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias=None, Tensor? weight=None, "
        'str reduction="mean", int ignore_index=-100, float label_smoothing=0.0, float z_loss=0.0, '
        "bool return_z_loss=False, float? softcap=None, float logit_scale=1.0, bool return_lse=False, "
        "bool return_argmax=False, bool return_entropy=False, bool skip_ignored=False, ScalarType? loss_dtype=None, "
        "int chunk_rows=0, int aspect_ratio=0, str? group=None) "
        "-> (Tensor loss, Tensor z_loss, Tensor lse, Tensor argmax, Tensor entropy)"
    ),
    "_forward": (
        f"(Tensor input, Tensor target, Tensor? weight, {_LOSS_TERMS}, int outputs, ScalarType loss_dtype) "
        "-> (Tensor loss, Tensor z_loss, Tensor log_prob, Tensor lse, Tensor argmax, Tensor entropy, "
        "Tensor row_stats, Tensor denominators)"
    ),
    "_backward": f"({_GRADIENTS}, Tensor input, {_SAVED}, {_LOSS_TERMS}) -> Tensor",
    "_backward_": f"({_GRADIENTS}, Tensor(a!) input, {_SAVED}, {_LOSS_TERMS}) -> ()",
    "_linear": (
        "(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, Tensor? grad_loss, "
        f"Tensor? grad_z_loss, Tensor? grad_lse, Tensor? grad_entropy, {_LOSS_TERMS}, int outputs, "
        "ScalarType loss_dtype, int chunk_rows, int aspect_ratio, str? group, bool[3] output_mask) "
        "-> (Tensor loss, Tensor z_loss, Tensor lse, Tensor argmax, Tensor entropy, "
        "Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias)"
    ),
}

# Bits of `outputs`: what `_forward` and `_linear` write beside the loss.
Z_LOSS, LOG_PROB, LSE, ARGMAX, ENTROPY = 1, 2, 4, 8, 16
# A bit of `vocab_parallel.forward` alone: the row_stats of 2x'.
DOUBLED_LSE = 32
# A bit of `_linear` alone: lse and entropy of an ignored row are 0 and its argmax is -1, as if it were not there.
SKIP_IGNORED = 64

NONE, MEAN, SUM = 0, 1, 2
REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}


# What `_forward` and `_linear` return, in the schema's order.
ForwardOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
LinearOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class LossTerms(NamedTuple):
    """The loss's options, in the order in which `_forward` and `_backward` take them.

    `softcap` 0.0 means none. Unpacks into an operator call: `_forward(input, target, weight, *terms, ...)`.
    """

    reduction: int
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float
    logit_scale: float

    # Methods, not properties, and without _asdict and _replace: torch.compile traces none of these on torch 2.7.

    def as_dict(self) -> dict[str, Any]:
        """By the names of the fields."""
        return {
            "reduction": self.reduction, "ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing,
            "z_loss": self.z_loss, "softcap": self.softcap, "logit_scale": self.logit_scale,
        }  # fmt: skip

    def doubled(self) -> "LossTerms":
        """The terms that give 2x' for x': the sum of squared probabilities is exp(lse(2x') - 2 lse(x'))."""
        reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale = self
        return LossTerms(reduction, ignore_index, label_smoothing, z_loss, 2 * softcap, 2 * logit_scale)


class Request(NamedTuple):
    """One call's options: the loss's terms, the bits of what to return beside it, and the loss's dtype and shape."""

    terms: LossTerms
    outputs: int
    loss_dtype: torch.dtype
    # The drop-in returns a reduced loss as [1], torch's functions as 0-d.
    reduced_shape: tuple[int, ...]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32. Not by torch.promote_types, which reaches dispatch modes as an operator."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def accumulated(weight: Tensor | None, input: Tensor) -> Tensor | None:
    """The class weights as every kernel takes them: in the accumulation dtype, contiguous."""
    return None if weight is None else weight.to(accumulation_dtype(input.dtype)).contiguous()


def define(library: torch.library.Library) -> None:
    """Defines every operator in `library`."""
    for name, signature in SCHEMAS.items():
        library.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
