# SPDX-License-Identifier: Apache-2.0
"""Modules that have imported a function of another module, when that function is exchanged and put back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import permutations
from types import ModuleType
from typing import Any

import pytest

from npu_ce_jit.patch.exchange import Patch, exchange
from npu_ce_jit.patch.importers import everywhere


class Scorer:
    """Like an autograd.Function, whose `apply` a framework binds to a name of its own."""

    @classmethod
    def apply(cls, value: int) -> list[str]:
        return [f"{cls.__name__} {value}"]


def score(value: int) -> list[str]:
    return [f"theirs {value}"]


@pytest.fixture
def modules() -> Iterator[dict[str, Any]]:
    """The module that defines `score` and `method`, and two that have imported them, also under other names."""
    made = {name: ModuleType(name) for name in ("defining", "before", "beside")}
    vars(made["defining"]).update(score=score, method=Scorer.apply)
    vars(made["before"]).update(renamed=score, method=made["defining"].method)
    vars(made["beside"]).update(score=lambda value: ["beside"], text="score")
    sys.modules.update(made)
    yield made
    for name in made:
        del sys.modules[name]


def answer(name: str) -> Callable[..., list[str]]:
    return lambda former, value: [name, *former(value)]


def patch(modules: dict[str, Any], name: str) -> Patch:
    return exchange(f"patch({name})", *everywhere(modules["defining"], {"score": answer(name), "method": answer(name)}))


def said(modules: dict[str, Any]) -> list[list[str]]:
    """The result at each place."""
    places = [("defining", "score"), ("defining", "method"), ("before", "renamed"), ("before", "method")]
    return [getattr(modules[module], name)(3) for module, name in places]


THEIRS = [["theirs 3"], ["Scorer 3"], ["theirs 3"], ["Scorer 3"]]


def test_all_that_have_imported_it_and_nobody_else(modules: dict[str, Any]) -> None:
    before = {name: dict(vars(module)) for name, module in modules.items()}
    with patch(modules, "ours") as one:
        assert said(modules) == [["ours", *of] for of in THEIRS]
        assert modules["beside"].score(3) == ["beside"]
        assert "before.renamed in effect" in repr(one)
    assert {name: dict(vars(module)) for name, module in modules.items()} == before


@pytest.mark.parametrize("order", list(permutations("abc")))
def test_undone_in_any_order(order: tuple[str, ...], modules: dict[str, Any]) -> None:
    patches = {name: patch(modules, name) for name in "abc"}
    left = "cba"
    for name in order:
        assert said(modules) == [[*left, *of] for of in THEIRS]
        patches[name].undo()
        left = left.replace(name, "")
    assert said(modules) == THEIRS
    assert modules["before"].renamed is modules["defining"].score is score


def test_what_is_imported_while_it_is_in_effect(modules: dict[str, Any]) -> None:
    """It is ours already: the same patch does not exchange it again, but the next one does."""
    one = patch(modules, "a")
    modules["before"].later = modules["defining"].score
    assert patch(modules, "a") is one
    assert modules["before"].later(3) == ["a", "theirs 3"]
    one.undo()
    assert modules["before"].later(3) == ["theirs 3"]
    with patch(modules, "b"):
        assert modules["before"].later(3) == ["b", "theirs 3"]
    assert modules["before"].later(3) == ["theirs 3"]


def test_a_module_that_imports_when_it_is_asked(modules: dict[str, Any]) -> None:
    class Lazy:
        @property
        def __class__(self) -> type:
            raise AssertionError("asked for its class")

    modules["beside"].lazy = Lazy()
    with patch(modules, "ours"):
        assert said(modules)[0] == ["ours", "theirs 3"]
