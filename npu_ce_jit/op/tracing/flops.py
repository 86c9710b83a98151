# SPDX-License-Identifier: Apache-2.0
"""What torch.utils.flop_counter counts of the operators: matrix products alone, as everywhere in torch.

A loss from logits has none. The loss from hidden states makes one product of each gradient that it is asked for, and
one for the logits, also where backward makes these again; the rows that it leaves out are not known from shapes.
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
    """In the place of what an earlier import of this package registered."""
    from torch.utils import flop_counter  # whose import calls this function

    for name in SCHEMAS:
        packet = getattr(OPS, name)
        flop_counter.flop_registry.pop(packet, None)
        flop_counter.register_flop_formula(packet)(_FORMULAS.get(name, _nothing))
