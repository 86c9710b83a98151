# SPDX-License-Identifier: Apache-2.0
"""Exchanges attributes of other packages' objects for our functions, and undoes it in any order, even under wrappers.

The attribute then holds a function that looks up, at each call, what the attribute held before. It calls our answer
with that, or, once the exchange is undone, only that. So a wrapper that somebody has put around it since (accelerate
wraps a model's forward) holds something that can still be switched off.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import weakref
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType, TracebackType
from typing import Any, Final, NamedTuple

from npu_ce_jit.errors import PatchError
from npu_ce_jit.log import warn

_ABSENT: Final = object()  # the object has no such attribute of its own; its class may
_MARK = "_npu_ce_jit_exchange"  # an attribute of the function that was put there


class Change(NamedTuple):
    """An attribute `owner.name`, and what its calls are to run.

    Args:
        owner: an nn.Module or another plain object, a class, or a Python module.
        name: of the attribute, which holds a function, or a method that is bound to `owner`.
        answer: is called with what the attribute held before, then the call's arguments; for a method, `owner` (or the
            copy of it that is called) comes between.
        default: what counts as held before, where neither the object nor its class has the attribute.
    """

    owner: Any
    name: str
    answer: Callable[..., Any]
    default: Any = None


class Patch:
    """What a function of `npu_ce_jit.patch` has exchanged, and the way back. A context manager: leaving it undoes it.

    The same call again, while it is in effect, returns the same Patch: one `undo()` takes it back. Patches may be
    undone in any order; each puts back what it found, without patches that were undone meanwhile.
    """

    def __init__(self, call: str, exchanges: list[_Exchange]) -> None:
        self._call = call
        self._exchanges = exchanges
        self._blocks = 0  # entered and not left

    def is_in_effect(self) -> bool:
        """Whether every exchanged attribute is still ours, or a wrapper that says it has ours inside."""
        return all(exchange.is_reached() for exchange in self._exchanges)

    def undo(self) -> None:
        """Puts back what was there; a second time, it does nothing.

        Where somebody else has replaced an attribute since, that stays, with a RuntimeWarning; if it calls ours, ours
        passes the call on to what it had found.
        """
        for exchange in reversed(self._exchanges):
            exchange.undo()

    def __enter__(self) -> Patch:  # noqa: PYI034  Self is of Python 3.11
        self._blocks += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._blocks -= 1
        if not self._blocks:
            self.undo()

    def __repr__(self) -> str:
        return f"<{self._call}: {'; '.join(map(str, self._exchanges))}>"


_made: weakref.WeakSet[Patch] = weakref.WeakSet()  # a patch lives as long as the objects that hold its functions


def in_effect() -> list[Patch]:
    """The patches of this process that are in effect."""
    return sorted((patch for patch in _made if patch.is_in_effect()), key=repr)


def exchange(call: str, *changes: Change) -> Patch:
    """Puts all changes into effect, and returns their Patch: the earlier one, if the same call's is in effect.

    Args:
        call: as a user writes it, its options included.
    """
    places = [(change.owner, change.name) for change in changes]
    for patch in in_effect():
        if patch._call == call and [(one.owner, one.name) for one in patch._exchanges] == places:
            return patch
    patch = Patch(call, [])
    patch._exchanges = [_Exchange(patch, *change) for change in changes]
    _made.add(patch)
    return patch


class _Exchange:
    """One attribute, from its exchange until it is put back."""

    def __init__(self, patch: Patch, owner: Any, name: str, answer: Callable[..., Any], default: Any) -> None:
        self.patch = patch  # keeps the patch alive as long as our function
        self.owner, self.name, self.answer, self.default = owner, name, answer, default
        self.is_undone = False
        self.below: Any = vars(owner).get(name, _ABSENT)
        found = getattr(owner, name, default)
        self.is_method = isinstance(found, MethodType) and found.__self__ is owner
        self.function = self._function(found)
        setattr(owner, name, MethodType(self.function, owner) if self.is_method else self.function)

    def _function(self, found: Any) -> FunctionType:
        def method(self_: Any, *arguments: Any, **keywords: Any) -> Any:
            former = self.former(self_)
            if self.is_undone:
                return former(*arguments, **keywords)
            return self.answer(former, self_, *arguments, **keywords)

        def function(*arguments: Any, **keywords: Any) -> Any:
            former = self.former(self.owner)
            return former(*arguments, **keywords) if self.is_undone else self.answer(former, *arguments, **keywords)

        ours: Any = method if self.is_method else function
        functools.update_wrapper(ours, found)
        # accelerate follows `__wrapped__` when it hands a model back, past ours. Callers ask for the signature.
        del ours.__wrapped__
        signature = inspect.signature(found)
        if self.is_method:
            itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
            signature = signature.replace(parameters=[itself, *signature.parameters.values()])
        ours.__signature__ = signature
        setattr(ours, _MARK, self)
        return ours  # type: ignore[no-any-return]

    def former(self, owner: Any) -> Any:
        """What the attribute held before, for the owner or a copy of it: copies share our function, bound to each."""
        if self.below is _ABSENT:
            if isinstance(owner, type):
                return getattr(super(owner, owner), self.name)
            of_class = getattr(type(owner), self.name, None)
            return self.default if of_class is None else of_class.__get__(owner)
        if self.is_method and isinstance(self.below, MethodType):
            return MethodType(self.below.__func__, owner)
        if isinstance(owner, type):  # a classmethod or a staticmethod of its own
            return self.below.__get__(None, owner)
        return self.below

    def is_reached(self) -> bool:
        return not self.is_undone and any(one is self.function for one in self._layers())

    def _layers(self) -> list[Any]:
        """The functions that a call goes through, as far as wrappers have a `__wrapped__`."""
        one, layers = getattr(self.owner, self.name, None), []
        while one is not None and one not in layers:
            one = getattr(one, "__func__", one)
            layers.append(one)
            ours = _exchange_of(one)
            one = ours.former(self.owner) if ours else getattr(one, "__wrapped__", None)
        return layers

    def undo(self) -> None:
        if self.is_undone:
            return
        current = vars(self.owner).get(self.name, _ABSENT)
        if getattr(current, "__func__", current) is self.function:
            if self.below is _ABSENT:
                delattr(self.owner, self.name)
            else:
                setattr(self.owner, self.name, self.below)
        else:
            self._take_out(current)
        self.is_undone = True

    def _take_out(self, current: Any) -> None:
        """Removes this exchange from below our later ones; another package's wrapper over it stays, with a warning."""
        layer = _exchange_of(getattr(current, "__func__", current))
        while layer is not None:
            if getattr(layer.below, "__func__", layer.below) is self.function:
                layer.below = self.below
                return
            layer = _exchange_of(getattr(layer.below, "__func__", layer.below))
        has_ours = "calls ours, which passes the call on" if self.is_reached() else "is left alone"
        warn(
            f"npu_ce_jit: expected ours in {self.place()}, got {self.found()}: it stays, "
            f"and {has_ours}. Undo a patch before what was put over it later, or put there what you want."
        )

    def place(self) -> str:
        return f"{getattr(self.owner, '__name__', type(self.owner).__name__)}.{self.name}"

    def found(self) -> str:
        """What stands there now, for a message."""
        return name_of(getattr(self.owner, self.name, None))

    def __str__(self) -> str:
        if self.is_undone:
            return f"{self.place()} undone"
        if self.is_reached():
            return f"{self.place()} in effect"
        return f"{self.place()} not in effect, it is {self.found()}"


def _exchange_of(function: Any) -> _Exchange | None:
    """Which exchange put a function there; wrappers copy its attributes, so the mark alone does not tell."""
    found: Any = getattr(function, _MARK, None)
    return found if found is not None and found.function is function else None


def beneath(function: Any) -> Any:
    """What one of our functions was exchanged for; any other function as it is."""
    while (ours := _exchange_of(getattr(function, "__func__", function))) is not None:
        function = ours.former(ours.owner)
    return function


def name_of(value: Any) -> str:
    """A function or a class, as a message names it."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


# What to install, by the package that is imported, where the names differ.
_DISTRIBUTIONS = {
    "fla": "flash-linear-attention", "liger_kernel": "liger-kernel", "megatron": "megatron-core", "swift": "ms-swift",
}  # fmt: skip


def framework(module: str, studied: str) -> ModuleType:
    """A module of a framework, imported for the patch that needs it.

    Args:
        module: its dotted name.
        studied: the framework's version that the patch was made for.

    Raises:
        PatchError: it cannot be imported.
    """
    name = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PatchError(
            f"expected the module {module}, as {name} {studied} has it, got {type(error).__name__}: {error}.",
            f"Install it: pip install '{_DISTRIBUTIONS.get(name, name)}>={studied}'",
        ) from error


def require_parameters(name: str, function: Any, expected: str, studied: str) -> None:
    """Raises PatchError unless a function of a framework has the parameters that a patch knows.

    Args:
        name: of the function, for the message.
        expected: its parameters' names, in their order, `, ` between them; `*` and `**` before those that take many.
        studied: the framework and its version that the patch was made for.
    """
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(function).parameters.values()
    got = ", ".join(stars.get(one.kind, "") + one.name for one in parameters)
    if got != expected:
        raise PatchError(
            f"expected {name}({expected}), as {studied} has it, got {name}({got}).",
            f"Nothing was exchanged. Install {studied}, or a newer npu_ce_jit, which may know this one.",
        )
