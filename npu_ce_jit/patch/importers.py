# SPDX-License-Identifier: Apache-2.0
"""The modules that hold a framework's function by its name: its own, and those that have imported it from there.

Attributes are exchanged here, where `switch.py` exchanges the code of torch's function: some of these functions are
methods that are bound to a class, which have no code of their own, and `exchange.py` puts attributes back in any order.
A program that has kept the function elsewhere (in an object, in torch.compile's result) keeps the framework's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

from npu_ce_jit.patch.exchange import Change, beneath


def everywhere(module: ModuleType, answers: dict[str, Callable[..., Any]]) -> list[Change]:
    """The changes that put `answers` into a module, and into each loaded module that has imported its functions.

    Args:
        module: where the functions are defined.
        answers: by the functions' names there, as `Change` takes them.
    """
    changes = [Change(module, name, answer) for name, answer in answers.items()]
    current = [getattr(module, name) for name in answers]
    originals = {id(beneath(function)): answer for function, answer in zip(current, answers.values(), strict=True)}
    in_effect = {id(function) for function in current if id(function) not in originals}  # ours, if imported since
    own = {(id(module), name) for name in answers}
    for owner, name, value in _functions_of_modules():
        if id(beneath(value)) in originals and id(value) not in in_effect and (id(owner), name) not in own:
            changes.append(Change(owner, name, originals[id(beneath(value))]))
    return changes


def _functions_of_modules() -> Iterator[tuple[ModuleType, str, Any]]:
    """Compares exact types: isinstance asks a proxy or a lazy object for its class, which imports what is behind it."""
    for owner in list(sys.modules.values()):
        if isinstance(owner, ModuleType):
            for name, value in list(vars(owner).items()):
                if type(value) in (FunctionType, MethodType):
                    yield owner, name, value
