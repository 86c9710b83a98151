# SPDX-License-Identifier: Apache-2.0
"""The operators' formulas for torch.utils.flop_counter, which counts matrix products alone.

A loss from logits has none. The loss from hidden states has one product for the logits, one more where backward makes
them again, and one for each gradient of input and linear_weight. Ignored rows count, although a CPU may leave them out:
shapes do not tell how many they are.
"""

from __future__ import annotations

from typing import Any

from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.schema import SCHEMAS

Shape = tuple[int, ...]


def _nothing(*_shapes: Any, out_shape: Any = None, **_options: Any) -> int:
    return 0


def _product(input: Shape, linear_weight: Shape, *_others: Any, out_shape: Any = None, **_options: Any) -> int:
    rows, features = input
    return 2 * rows * features * linear_weight[0]


def _chunked_products(input: Shape, linear_weight: Shape, *others: Any, out_shape: Any = None) -> int:
    output_mask: list[bool] = others[-1]
    return _product(input, linear_weight) * (1 + sum(output_mask[:2]))


_FORMULAS = {"linear_cross_entropy": _product, "_linear": _chunked_products}


def register() -> None:
    """Registers the formulas, replacing those of an earlier import of this package."""
    from torch.utils import flop_counter  # whose import calls this function

    for name in SCHEMAS:
        packet = getattr(OPS, name)
        flop_counter.flop_registry.pop(packet, None)
        flop_counter.register_flop_formula(packet)(_FORMULAS.get(name, _nothing))
