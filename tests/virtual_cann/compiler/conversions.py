# SPDX-License-Identifier: Apache-2.0
"""Device code may not convert between unsigned integers and floats: boards' logs show bisheng refuse it by these words.

Whether constants and bool are meant too no log says; they are refused, and so is what a template or a conversion that
nobody wrote does. Judged is what a core would run: kernels, `__aicore__` functions, and whatever these call of the
user's. Not seen are destructors of class templates, which nothing in the source names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from virtual_cann.compiler import clang
from virtual_cann.compiler.clang import Cursor, FrontEnd
from virtual_cann.compiler.tokens import Problem

# libclang's numbers of types. bool counts as unsigned in clang; plain char is left out, as its sign is the host's.
_UNSIGNED = frozenset({3, 5, 6, 7, 8, 9, 10, 11, 12})
_FLOATING = frozenset({21, 22, 23, 30, 31, 32, 39})

_DEVICE_MARK = "aicore"  # include/bisheng_builtins.h


def check(library: Path, source: str, arguments: Sequence[str], is_users: Callable[[str], bool]) -> list[Problem]:
    """The conversions, or what clang itself refuses in the user's files. Raises FrontEndError where clang gives up."""
    with clang.parsed(library, source, arguments) as unit:
        refused = []
        for reads_on, problem in unit.errors():
            if not reads_on:
                raise clang.FrontEndError(str(problem))
            if is_users(problem.place.file):
                refused.append(problem)
        return refused or _Walk(unit, is_users).problems()


class _Walk:
    def __init__(self, unit: FrontEnd, is_users: Callable[[str], bool]) -> None:
        self._unit = unit
        self._is_users = is_users
        self._known: set[tuple[int, ...]] = set()
        self._to_visit: list[Cursor] = []
        self._problems: set[Problem] = set()

    def problems(self) -> list[Problem]:
        self._unit.visit(self._unit.top(), self._find_device_function)
        while self._to_visit:
            self._unit.visit(self._to_visit.pop(), self._see)
        return sorted(self._problems, key=lambda problem: (problem.place.file, problem.place.line, problem.text))

    def _find_device_function(self, node: Cursor, parent: Cursor) -> bool:
        if node.kind == clang.ANNOTATION and self._unit.name(node) == _DEVICE_MARK:
            self._add(parent)
        return node.kind in (*clang.FUNCTIONS, *clang.SCOPES) and self._is_users(self._unit.place(node).file)

    def _see(self, node: Cursor, parent: Cursor) -> bool:
        if parent.kind == clang.IMPLICIT_CAST and node.kind in clang.EXPRESSIONS:
            self._judge(node, parent)
        if node.kind in clang.REFERENCES:
            function = self._unit.referenced(node)
            if function.kind in clang.FUNCTIONS:
                self._add(function)
            if node.kind == clang.CALL and function.kind == clang.CONSTRUCTOR:
                for field in self._unit.fields(node):  # with what they are initialised by
                    self._add(field)
        return True

    def _judge(self, operand: Cursor, cast: Cursor) -> None:
        to, from_ = self._unit.type(cast), self._unit.type(operand)
        kinds = self._unit.canonical_kind(to), self._unit.canonical_kind(from_)
        if any(a in _FLOATING and b in _UNSIGNED for a, b in (kinds, kinds[::-1])):
            self._problems.add(
                Problem(
                    self._unit.place(cast),
                    "cast between floating and unsigned integer variable is not allowed in aicore function: "
                    f"'{self._unit.spelled(from_)}' to '{self._unit.spelled(to)}'; convert through int32_t, or pass a "
                    "float from the host",
                )
            )

    def _add(self, declaration: Cursor) -> None:
        if declaration.kind != clang.FIELD:
            declaration = self._unit.definition(declaration)
        identity = self._unit.identity(declaration)
        if declaration.kind in (*clang.FUNCTIONS, clang.FIELD) and identity not in self._known:
            self._known.add(identity)
            if self._is_users(self._unit.place(declaration).file):
                self._to_visit.append(Cursor.from_buffer_copy(declaration))
