# SPDX-License-Identifier: Apache-2.0
"""The collectives that code runs, and the largest tensors that it allocates."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watched(TorchDispatchMode):
    """Records each collective's name and bytes, and each new tensor of at least `large` elements."""

    def __init__(self, large: int = 1 << 62) -> None:
        super().__init__()
        self.large = large
        self.collectives: list[tuple[str, int]] = []
        self.large_outputs: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, FakeTensor) for kind in types):
            return func(*args, **(kwargs or {}))  # DTensor computes a shape by it
        if any(kind not in (torch.Tensor, torch.nn.Parameter) for kind in types):
            return NotImplemented  # runs again as operators on plain tensors, for example on a DTensor's local ones
        result = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        if func.namespace == "_c10d_functional" and name not in ("wait_tensor", "_wrap_tensor_autograd"):
            self.collectives.append((name, args[0].numel() * args[0].element_size()))
        known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _has_storage(leaf)}
        self.large_outputs += [
            name
            for leaf in tree_leaves(result)
            if _has_storage(leaf) and leaf.untyped_storage().nbytes() >= self.large * leaf.element_size()
            if leaf.untyped_storage().data_ptr() not in known
        ]
        return result


def _has_storage(leaf: object) -> bool:
    return type(leaf) in (torch.Tensor, torch.nn.Parameter)
