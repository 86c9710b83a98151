# SPDX-License-Identifier: Apache-2.0
"""The options of a loss that are numbers, on their way into an operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.torch_compat import traced_constant

_NO_NUMBERS = (Tensor, torch.SymInt, torch.SymFloat)


def plain_numbers(**options: Any) -> list[Any]:
    """The options' values, which are constants in the graph of a compiled function.

    A symbolic float would go stale: torch passes it as a tensor, whose value its cache of graphs does not look at.
    """
    numbers = [_plain(name, value) if isinstance(value, _NO_NUMBERS) else value for name, value in options.items()]
    if torch.compiler.is_dynamo_compiling():
        return [traced_constant(value) if isinstance(value, (int, float)) else value for value in numbers]
    return numbers


def _plain(name: str, value: Any) -> int | float:
    if isinstance(value, Tensor):  # it would be read as a number, and its gradient lost without a word
        raise TypeError(
            f"expected {name} to be a number, got a Tensor: the loss is not differentiable with respect to it; "
            "apply it to the logits or to the loss outside, or pass .item()"
        )
    if isinstance(value, torch.SymInt):
        return int(value)
    # In a graph that calls what the switch redirects. With its symbols fixed, and not it alone, torch traces anew.
    for symbol in value.node.expr.free_symbols:
        if not symbol.is_integer:
            float(value.node.shape_env.create_symfloatnode(symbol, hint=None))
    return float(value)
