# SPDX-License-Identifier: Apache-2.0
"""Turns the numeric options of a loss into what its operator takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.torch_compat import traced_constant

_NO_NUMBERS = (Tensor, torch.SymInt, torch.SymFloat)


def plain_numbers(**options: Any) -> list[Any]:
    """The options' values; in a compiled function, as constants of its graph.

    A symbolic float would go stale: torch passes it as a tensor, and its cache of graphs ignores the tensor's value.
    """
    numbers = [_plain(name, value) if isinstance(value, _NO_NUMBERS) else value for name, value in options.items()]
    if torch.compiler.is_dynamo_compiling():
        return [traced_constant(value) if isinstance(value, (int, float)) else value for value in numbers]
    return numbers


def _plain(name: str, value: Any) -> int | float:
    if isinstance(value, Tensor):  # an operator would read its value, and silently lose its gradient
        raise TypeError(
            f"expected {name} to be a number, got a Tensor: the loss is not differentiable with respect to it; "
            "apply it to the logits or to the loss outside, or pass .item()"
        )
    if isinstance(value, torch.SymInt):
        return int(value)
    # From a compiled graph that calls what the switch redirects. Its symbols are fixed too, so that torch traces anew.
    for symbol in value.node.expr.free_symbols:
        if not symbol.is_integer:
            float(value.node.shape_env.create_symfloatnode(symbol, hint=None))
    return float(value)
