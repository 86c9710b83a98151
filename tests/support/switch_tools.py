# SPDX-License-Identifier: Apache-2.0
"""Tells who computed a loss, and whether the switch changes a call's result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import npu_ce_jit

T = TypeVar("T")


class _Operators(TorchDispatchMode):
    """Records the namespaces of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.namespaces.add(func.namespace)
        return func(*args, **(kwargs or {}))


def runs_ours(call: Callable[[], T]) -> tuple[T, bool]:
    """A call's result, and whether an operator of this package ran in it."""
    with _Operators() as operators:
        result = call()
    return result, "npu_ce_jit" in operators.namespaces


def by_ours(call: Callable[[], T]) -> T:
    result, ours = runs_ours(call)
    assert ours, "torch computed it"
    return result


def outcome(call: Callable[[], Any]) -> Any:
    """A call's result, or its error's type and text."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  whatever torch says
        return type(error), str(error)


def require_same(call: Callable[[], Any], by_whom: Literal["torch", "ours"] | None = None) -> None:
    """Fails unless a call has the same outcome with and without the switch, computed by `by_whom`."""
    expected = outcome(call)
    with npu_ce_jit.installed():
        found, ours = runs_ours(lambda: outcome(call))
    assert by_whom is None or ours == (by_whom == "ours"), found
    if isinstance(expected, tuple) and isinstance(expected[0], type):
        assert found == expected
    elif torch.is_tensor(expected) and expected.is_meta:
        assert (found.device, found.dtype, found.shape) == (expected.device, expected.dtype, expected.shape)
    else:
        plain = [tree_map_only(torch.Tensor, torch.Tensor.detach, one) for one in (found, expected)]
        torch.testing.assert_close(*plain, equal_nan=True)
