# SPDX-License-Identifier: Apache-2.0
"""Device code may not convert between unsigned integers and floats: bisheng refuses it, with this text in boards' logs.

No log says whether that includes constants and bool; they are refused here, also in templates and in implicit
conversions. A float as a bool is a comparison, and allowed; so is an operand of 8 or 16 bits, which C++ promotes to
int first. Only code that a core would run is checked: kernels, `__aicore__` functions, and the user's
functions that they call.

Not checked are destructors of class templates, which nothing in the source names, and lists whose inner braces are
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from virtual_cann.compiler import clang
from virtual_cann.compiler.clang import Cursor, FrontEnd, Type
from virtual_cann.compiler.tokens import Diagnostic

# libclang's numbers of types. Plain char is left out, as its sign is the host's.
_BOOL = 3
_UNSIGNED = frozenset({5, 6, 7, 8, 9, 10, 11, 12})
_FLOATING = frozenset({21, 22, 23, 30, 31, 32, 39})

_DEVICE_MARK = "aicore"  # include/bisheng_builtins_for_clang.h


def check(
    library: Path,
    source: str,
    arguments: Sequence[str],
    is_users: Callable[[str], bool],
    is_systems: Callable[[str], bool],
) -> list[Diagnostic]:
    """The refused conversions; or else clang's own errors, except those in system headers, which were written for g++.

    Raises FrontEndError where clang gives up.
    """
    with clang.parsed(library, source, arguments) as unit:
        refused = []
        for reads_on, problem in unit.errors():
            if not reads_on:
                raise clang.FrontEndError(str(problem))
            if not is_systems(problem.place.file):
                refused.append(problem)
        return refused or _Walk(unit, is_users).problems()


class _Walk:
    def __init__(self, unit: FrontEnd, is_users: Callable[[str], bool]) -> None:
        self._unit = unit
        self._is_users = is_users
        self._known: set[tuple[int, ...]] = set()
        self._to_visit: list[Cursor] = []
        self._problems: set[Diagnostic] = set()

    def problems(self) -> list[Diagnostic]:
        self._unit.visit(self._unit.top(), self._find_device_functions)
        while self._to_visit:
            self._unit.visit(self._to_visit.pop(), self._see)
        return sorted(self._problems, key=lambda problem: (problem.place.file, problem.place.line, problem.text))

    def _find_device_functions(self, node: Cursor, parent: Cursor) -> bool:
        """Adds the user's device functions, and the kernel instances that the user's launches create."""
        if node.kind == clang.ANNOTATION and self._unit.name(node) == _DEVICE_MARK:
            self._add(parent)
        if node.kind in clang.REFERENCES:
            function = self._unit.referenced(node)
            if function.kind in clang.FUNCTIONS and self._is_device_function(function):
                self._add(function)
        return node.kind in clang.CODE or self._is_users(self._unit.place(node).file)

    def _is_device_function(self, function: Cursor) -> bool:
        attributes = (node for node in self._unit.children(function) if node.kind == clang.ANNOTATION)
        return any(self._unit.name(node) == _DEVICE_MARK for node in attributes)

    def _see(self, node: Cursor, parent: Cursor) -> bool:
        if node.kind in clang.EXPRESSIONS and parent.kind in (clang.IMPLICIT_CAST, clang.COMPOUND_ASSIGNMENT):
            self._judge(node, self._unit.type(parent))
        if node.kind == clang.LIST:
            self._judge_list(node)
        if node.kind in clang.REFERENCES:
            function = self._unit.referenced(node)
            if function.kind in clang.FUNCTIONS:
                self._add(function)
            if node.kind == clang.CALL and function.kind == clang.CONSTRUCTOR:
                for field in self._unit.fields(self._unit.type(node)):  # their initialisers are checked too
                    self._add(field)
        return True

    def _judge(self, operand: Cursor, to: Type) -> None:
        from_ = self._unit.type(operand)
        kind, target = self._unit.canonical_kind(from_), self._unit.canonical_kind(to)
        to_float = target in _FLOATING and (kind in _UNSIGNED or kind == _BOOL)
        if to_float or (kind in _FLOATING and target in _UNSIGNED):
            self._problems.add(
                Diagnostic(
                    self._unit.place(operand),
                    "cast between floating and unsigned integer variable is not allowed in aicore function: "
                    f"'{self._unit.spelled(from_)}' to '{self._unit.spelled(to)}'; convert through int32_t, or pass a "
                    "float from the host",
                )
            )

    def _judge_list(self, list_: Cursor) -> None:
        """clang shows no conversions in a list, so its elements are compared with the types that they become."""
        elements = self._unit.children(list_)
        for element, type_ in zip(elements, self._unit.element_types(list_, len(elements)), strict=False):
            self._judge(element, type_)

    def _add(self, declaration: Cursor) -> None:
        if declaration.kind != clang.FIELD:
            declaration = self._unit.definition(declaration)
        identity = self._unit.identity(declaration)
        if declaration.kind in (*clang.FUNCTIONS, clang.FIELD) and identity not in self._known:
            self._known.add(identity)
            if self._is_users(self._unit.place(declaration).file):
                self._to_visit.append(Cursor.from_buffer_copy(declaration))
