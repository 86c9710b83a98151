# SPDX-License-Identifier: Apache-2.0
"""Features that only some versions of torch have, and replacements for them.

Where a test compares with a function that torch lacks, the formula is written out here; a test is skipped only where
its subject does not exist. `conftest.py` allows no other reason to skip a test on the virtual NPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npu_ce_jit import torch_compat
from npu_ce_jit.torch_compat import LinearCrossEntropyOptions

REASONS: list[str] = []
_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


def _needs(version: str, there: bool, what: str) -> pytest.MarkDecorator:
    reason = f"needs torch {version}: {what}"
    REASONS.append(reason)
    return pytest.mark.skipif(not there, reason=reason)


needs_fake_npu = _needs("2.10", torch_compat.set_up_python_backend is not None, "devices whose backend is in Python")
# Before, AOTInductor packages pass dtypes to custom operators by a wrong table, or do not load.
needs_aot_inductor = _needs("2.12", _VERSION >= (2, 12), "packages of AOTInductor that hold custom operators")
needs_kernels_of_operators = _needs("2.9", hasattr(torch.library, "get_kernel"), "the kernels of others' operators")
needs_error_of_programs = _needs("2.9", _VERSION >= (2, 9), "an error that names the operator which a program lacks")
CAN_ADD_UP = _VERSION >= (2, 8)  # FSDPModule.set_gradient_divide_factor
# Second derivatives of sharded rows. Before, DTensors have no rules for logsumexp and for `tensor[0]`.
DTENSORS_DIFFERENTIATE_TWICE = _VERSION >= (2, 10)
# Before, gloo's reduce-scatter silently sums where an average is requested; other backends average.
GLOO_AVERAGES = _VERSION >= (2, 9)
needs_listed_names = _needs("2.13 and no other", _VERSION == (2, 13), "the names that its torch_npu asks CANN for")

if hasattr(F, "linear_cross_entropy"):  # 2.13
    linear_cross_entropy: Callable[..., Tensor] = F.linear_cross_entropy
    LinearCrossEntropyLoss: type[nn.Module] = nn.LinearCrossEntropyLoss
else:

    def linear_cross_entropy(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: LinearCrossEntropyOptions | None = None,
    ) -> Tensor:
        """Computes all logits at once."""
        logits = torch.tensordot(input, linear_weight, ([-1], [-1]))
        if linear_bias is not None:
            logits = logits + linear_bias
        if ignore_index is None:
            ignore_index = -100
        return F.cross_entropy(
            logits, target, weight, reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing
        )

    class LinearCrossEntropyLoss(torch_compat.LinearCrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            sizes = (self.num_classes, *self.out_features)
            bias = self.linear.bias
            return linear_cross_entropy(
                input,
                self.linear.weight.view(*sizes, -1),
                target,
                linear_bias=None if bias is None else bias.view(sizes),
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
            )
