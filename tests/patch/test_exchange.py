# SPDX-License-Identifier: Apache-2.0
"""Patches of toys: the attribute while they are in effect, and afterwards, in whatever order they are undone."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import itertools
import re
import weakref
from collections.abc import Callable, Iterator
from types import MethodType, ModuleType
from typing import Any

import pytest
from torch import nn

import npu_ce_jit
from npu_ce_jit.errors import PatchError
from npu_ce_jit.patch import Patch, exchange


class Toy(nn.Module):
    def __init__(self, number: int = 1) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: int, scale: int = 1) -> list[Any]:
        """Returns its arguments."""
        return [self.number, x, scale]


class Maker:
    @classmethod
    def make(cls, x: int) -> list[Any]:
        return [cls.__name__, x]


class Derived(Maker):
    """Inherits `make`, as a torch.autograd.Function inherits apply."""


class Static:
    @staticmethod
    def make(x: int) -> list[Any]:
        return ["static", x]


module = ModuleType("toys")


def double(x: int) -> list[Any]:
    return [2 * x]


module.double = double  # type: ignore[attr-defined]


def said(word: str) -> Callable[..., Any]:
    return lambda theirs, *arguments, **keywords: [word, *theirs(*arguments[-1:], **keywords)]


def patch(word: str, owner: Any, name: str) -> Patch:
    return exchange.exchange(f"toys.{word}()", exchange.Change(owner, name, said(word)))


def owners() -> Iterator[tuple[Any, str, list[Any]]]:
    """For each kind of attribute: its owner, its name, and its result for 3."""
    yield Toy(), "forward", [1, 3, 1]
    yield module, "double", [6]
    yield Derived, "make", ["Derived", 3]
    yield Maker, "make", ["Maker", 3]
    yield Static, "make", ["static", 3]
    own = Toy(2)
    own.forward = MethodType(Toy.forward, own)  # type: ignore[method-assign]
    yield own, "forward", [2, 3, 1]


def own_attributes(owner: Any) -> dict[str, Any]:
    return dict(vars(owner))


@pytest.mark.parametrize("orders", [*itertools.permutations(range(3))], ids=str)
def test_undone_in_any_order(orders: tuple[int, ...]) -> None:
    for owner, name, plain in owners():
        before = own_attributes(owner)
        patches = [patch(word, owner, name) for word in "abc"]
        left = ["c", "b", "a"]
        for number in orders:
            assert getattr(owner, name)(3) == left + plain
            patches[number].undo()
            left.remove("abc"[number])
            assert [one.is_in_effect() for one in patches] == [word in left for word in "abc"]
            patches[number].undo()  # undone already: does nothing
        assert getattr(owner, name)(3) == plain
        assert own_attributes(owner) == before


def test_the_same_call_again_is_the_same_patch() -> None:
    toy, other = Toy(), Toy()
    once, again, elsewhere = (patch("a", owner, "forward") for owner in (toy, toy, other))
    assert once is again is not elsewhere
    assert toy.forward(3) == ["a", 1, 3, 1]
    again.undo()
    assert "forward" not in vars(toy)
    assert elsewhere.is_in_effect()
    assert patch("a", toy, "forward") is not once, "that one is undone"


def test_a_block_undoes_it_and_blocks_nest() -> None:
    toy = Toy()
    with patch("a", toy, "forward"):
        with patch("a", toy, "forward"):
            assert toy.forward(3) == ["a", 1, 3, 1]
        assert toy.forward(3) == ["a", 1, 3, 1]
    assert "forward" not in vars(toy)


def test_who_comes_after_keeps_the_attribute_and_is_told() -> None:
    toy = Toy()
    first = patch("a", toy, "forward")
    theirs = functools.wraps(toy.forward.__func__)(lambda self, x: ["theirs", x])
    toy.forward = MethodType(theirs, toy)  # type: ignore[method-assign]
    del theirs.__wrapped__  # as if theirs did not call ours
    assert not first.is_in_effect()
    assert "not in effect, it is test_exchange.Toy.forward" in repr(first)
    with pytest.warns(RuntimeWarning, match=r"expected ours in Toy.forward, got .*: it stays, and is left alone"):
        first.undo()
    assert toy.forward(3) == ["theirs", 3]


def test_who_takes_the_attribute_away_is_told_too() -> None:
    toy = Toy()
    first = patch("a", toy, "forward")
    del toy.forward
    assert "not in effect, it is test_exchange.Toy.forward" in repr(first)
    with pytest.warns(RuntimeWarning, match=r"expected ours in Toy.forward, got test_exchange.Toy.forward: it stays"):
        first.undo()


def test_what_others_have_wrapped_around_ours_passes_calls_on_once_it_is_undone() -> None:
    """As accelerate wraps a model's forward."""
    toy = Toy()
    first = patch("a", toy, "forward")
    inside = toy.forward.__func__

    @functools.wraps(inside)
    def theirs(self: Toy, *arguments: Any) -> list[Any]:
        return ["theirs", *inside(self, *arguments)]

    toy.forward = MethodType(theirs, toy)  # type: ignore[method-assign]
    second = patch("b", toy, "forward")
    assert toy.forward(3) == ["b", "theirs", "a", 1, 3, 1]
    assert first.is_in_effect()
    with pytest.warns(RuntimeWarning, match="it stays, and calls ours, which passes the call on"):
        first.undo()
    assert not first.is_in_effect()
    assert toy.forward(3) == ["b", "theirs", 1, 3, 1]
    second.undo()
    assert toy.forward.__func__ is theirs
    assert toy.forward(3) == ["theirs", 1, 3, 1]


def test_it_looks_like_what_it_stands_for() -> None:
    for owner, name, _ in owners():
        theirs = getattr(owner, name)
        seen = [(f.__name__, f.__doc__, f.__module__, inspect.signature(f)) for f in (theirs,)]
        with patch("a", owner, name):
            ours = getattr(owner, name)
            assert [(f.__name__, f.__doc__, f.__module__, inspect.signature(f)) for f in (ours,)] == seen
            assert not hasattr(ours, "__wrapped__"), "who unwraps it gets past it"


def test_a_copy_is_patched_and_computes_with_its_own() -> None:
    toy = Toy()
    patches = [patch(word, toy, "forward") for word in "ab"]
    copied = copy.deepcopy(toy)
    copied.number = 7
    assert copied.forward(3) == ["b", "a", 7, 3, 1]
    assert toy.forward(3) == ["b", "a", 1, 3, 1]
    for one in patches:
        one.undo()
    assert copied.forward(3) == [7, 3, 1]
    assert toy.forward(3) == [1, 3, 1]


def test_what_is_in_effect_is_listed_and_nothing_is_kept_alive() -> None:
    toy = Toy()
    before = npu_ce_jit.patch.in_effect()
    first = patch("a", toy, "forward")
    assert [one for one in npu_ce_jit.patch.in_effect() if one not in before] == [first]
    assert repr(first) == "<toys.a(): Toy.forward in effect>"
    assert repr(first) in npu_ce_jit.info()["patches"]
    first.undo()
    assert repr(first) == "<toys.a(): Toy.forward undone>"
    assert npu_ce_jit.patch.in_effect() == before
    patch("b", toy, "forward")
    seen = weakref.ref(toy)
    del toy, first, before
    gc.collect()
    assert seen() is None


def test_a_framework_that_is_not_there_or_another_one() -> None:
    with pytest.raises(PatchError, match=r"expected the module no_such.part, as no_such 1.2 has it, got ModuleNotFoun"):
        exchange.framework("no_such.part", "1.2")
    exchange.require_parameters("toys.f", lambda a, *b, **c: a, "a, *b, **c", "toys 1.2")
    with pytest.raises(PatchError, match=r"expected toys.f\(a, c\), as toys 1.2 has it, got toys.f\(a, b\)") as caught:
        exchange.require_parameters("toys.f", lambda a, b: a, "a, c", "toys 1.2")
    assert "Nothing was exchanged. Install toys 1.2" in str(caught.value)


def test_the_names_of_the_package() -> None:
    assert {"Patch", "in_effect", "transformers", "trl"} <= {*dir(npu_ce_jit.patch)}
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        _ = npu_ce_jit.patch.no_such
    for name in npu_ce_jit.patch.__all__:
        assert not isinstance(getattr(npu_ce_jit.patch, name), ModuleType), f"a file takes the place of {name}"


@pytest.mark.parametrize(
    ("module", "hint"), [("fla.nowhere", "flash-linear-attention>=9"), ("nowhere.at.all", "nowhere>=9")]
)
def test_a_framework_that_is_absent_is_named_as_it_is_installed(module: str, hint: str) -> None:
    with pytest.raises(PatchError, match=re.escape(f"pip install '{hint}'")):
        exchange.framework(module, "9")
