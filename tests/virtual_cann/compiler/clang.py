# SPDX-License-Identifier: Apache-2.0
"""clang's front end through libclang's C interface: as much of it as a walk over a source's syntax tree needs.

The real bisheng is a clang 15, and so is this front end: it reports types, instantiated templates and implicit
conversions as bisheng sees them. No dump of g++'s shows which type a constant was converted from.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_uint, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from virtual_cann.compiler.tokens import Diagnostic, Place

# libclang's numbers, from clang-c/Index.h.
FIELD, FUNCTION, METHOD, CONSTRUCTOR, DESTRUCTOR, CONVERSION = 6, 8, 21, 24, 25, 26
FUNCTIONS = frozenset({FUNCTION, METHOD, CONSTRUCTOR, DESTRUCTOR, CONVERSION})
EXPRESSIONS = range(100, 200)
CODE = range(100, 300)  # expressions and statements
IMPLICIT_CAST = 100  # "unexposed": no other such expression has a type that differs from that of its operand
CALL, COMPOUND_ASSIGNMENT, LIST = 103, 115, 119
REFERENCES = frozenset({101, 102, CALL})  # references to a function or variable, to a member, and to a call's callee
ANNOTATION = 406
ENUM_TYPE, ARRAY_TYPE = 106, 112
_CONTINUE, _RECURSE = 1, 2
_KEEP_GOING = 0x200
_ERROR, _FATAL = 3, 4


class FrontEndError(Exception):
    """clang could not read the source at all."""


class Cursor(Structure):
    """A node of the syntax tree."""

    _fields_ = (("kind", c_int), ("xdata", c_int), ("data", c_void_p * 3))


class Type(Structure):
    _fields_ = (("kind", c_int), ("data", c_void_p * 2))


class _String(Structure):
    _fields_ = (("data", c_void_p), ("private_flags", c_uint))


class _Location(Structure):
    _fields_ = (("data", c_void_p * 2), ("int_data", c_uint))


_Visitor = ctypes.CFUNCTYPE(c_int, Cursor, Cursor, c_void_p)
_FieldVisitor = ctypes.CFUNCTYPE(c_int, Cursor, c_void_p)
_FUNCTIONS = {
    "createIndex": (c_void_p, c_int, c_int),
    "disposeIndex": (None, c_void_p),
    "parseTranslationUnit2": (
        c_int, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, c_uint, c_uint, POINTER(c_void_p),
    ),
    "disposeTranslationUnit": (None, c_void_p),
    "getTranslationUnitCursor": (Cursor, c_void_p),
    "getNumDiagnostics": (c_uint, c_void_p),
    "getDiagnostic": (c_void_p, c_void_p, c_uint),
    "disposeDiagnostic": (None, c_void_p),
    "getDiagnosticSeverity": (c_int, c_void_p),
    "getDiagnosticSpelling": (_String, c_void_p),
    "getDiagnosticLocation": (_Location, c_void_p),
    "getCursorLocation": (_Location, Cursor),
    "getExpansionLocation": (
        None, _Location, POINTER(c_void_p), POINTER(c_uint), POINTER(c_uint), POINTER(c_uint),
    ),
    "getFileName": (_String, c_void_p),
    "getCString": (c_char_p, _String),
    "disposeString": (None, _String),
    "visitChildren": (c_uint, Cursor, _Visitor, c_void_p),
    "Type_visitFields": (c_uint, Type, _FieldVisitor, c_void_p),
    "getCursorType": (Type, Cursor),
    "getCanonicalType": (Type, Type),
    "getTypeSpelling": (_String, Type),
    "getTypeDeclaration": (Cursor, Type),
    "getArrayElementType": (Type, Type),
    "getEnumDeclIntegerType": (Type, Cursor),
    "getCursorReferenced": (Cursor, Cursor),
    "getCursorDefinition": (Cursor, Cursor),
    "getCursorSpelling": (_String, Cursor),
}  # fmt: skip


class FrontEnd:
    """One source file, parsed. Its cursors are valid only inside `parsed`."""

    def __init__(self, library: ctypes.CDLL, unit: c_void_p) -> None:
        self._library = library
        self._unit = unit

    def top(self) -> Cursor:
        top: Cursor = self._call("getTranslationUnitCursor", self._unit)
        return top

    def visit(self, cursor: Cursor, see: Callable[[Cursor, Cursor], bool]) -> None:
        """Calls see(node, its parent) for each node below the cursor, but not below one for which it returns False."""
        self._call(
            "visitChildren",
            cursor,
            _Visitor(lambda node, parent, _: _RECURSE if see(node, parent) else _CONTINUE),
            None,
        )

    def children(self, cursor: Cursor) -> list[Cursor]:
        found: list[Cursor] = []

        def keep(node: Cursor, _: Cursor) -> bool:
            found.append(Cursor.from_buffer_copy(node))
            return False

        self.visit(cursor, keep)
        return found

    def fields(self, type_: Type) -> list[Cursor]:
        """The fields of a class, as it was instantiated."""
        found: list[Cursor] = []

        def keep(field: Cursor, _: None) -> int:
            found.append(Cursor.from_buffer_copy(field))
            return _CONTINUE

        self._call("Type_visitFields", type_, _FieldVisitor(keep), None)
        return found

    def element_types(self, list_: Cursor, count: int) -> list[Type]:
        """The types that the first `count` elements of a braced list are converted to."""
        type_ = self._call("getCanonicalType", self.type(list_))
        if type_.kind == ARRAY_TYPE:
            return [self._call("getArrayElementType", type_)] * count
        return [self.type(field) for field in self.fields(type_)][:count]

    def type(self, cursor: Cursor) -> Type:
        type_: Type = self._call("getCursorType", cursor)
        return type_

    def canonical_kind(self, type_: Type) -> int:
        """libclang's number for the type; for an enumeration, that of its underlying type."""
        type_ = self._call("getCanonicalType", type_)
        if type_.kind == ENUM_TYPE:
            declaration = self._call("getTypeDeclaration", type_)
            type_ = self._call("getCanonicalType", self._call("getEnumDeclIntegerType", declaration))
        return int(type_.kind)

    def spelled(self, type_: Type) -> str:
        return self._text(self._call("getTypeSpelling", type_))

    def name(self, cursor: Cursor) -> str:
        return self._text(self._call("getCursorSpelling", cursor))

    def referenced(self, cursor: Cursor) -> Cursor:
        referenced: Cursor = self._call("getCursorReferenced", cursor)
        return referenced

    def definition(self, cursor: Cursor) -> Cursor:
        definition: Cursor = self._call("getCursorDefinition", cursor)
        return definition

    def identity(self, cursor: Cursor) -> tuple[int, ...]:
        return (cursor.kind, *(data or 0 for data in cursor.data))

    def place(self, cursor: Cursor) -> Place:
        """The node's place; inside a macro's expansion, where the macro was used, as in preprocessed text."""
        return self._place(self._call("getCursorLocation", cursor))

    def errors(self) -> Iterator[tuple[bool, Diagnostic]]:
        """The errors that clang reports, each with whether it went on reading after it."""
        for index in range(self._call("getNumDiagnostics", self._unit)):
            diagnostic = c_void_p(self._call("getDiagnostic", self._unit, index))
            severity = self._call("getDiagnosticSeverity", diagnostic)
            if severity >= _ERROR:
                place = self._place(self._call("getDiagnosticLocation", diagnostic))
                text = self._text(self._call("getDiagnosticSpelling", diagnostic))
                yield severity < _FATAL, Diagnostic(place, text)
            self._call("disposeDiagnostic", diagnostic)

    def _place(self, location: _Location) -> Place:
        file, line = c_void_p(), c_uint()
        self._call("getExpansionLocation", location, byref(file), byref(line), None, None)
        name = self._text(self._call("getFileName", file))
        return Place(os.path.normpath(name) if name else name, line.value)

    def _text(self, string: _String) -> str:
        data: bytes | None = self._call("getCString", string)
        text = (data or b"").decode("utf-8", "surrogateescape")
        self._call("disposeString", string)
        return text

    def _call(self, function: str, *arguments: Any) -> Any:
        return getattr(self._library, f"clang_{function}")(*arguments)


@contextmanager
def parsed(library: Path, source: str, arguments: Sequence[str]) -> Iterator[FrontEnd]:
    clang = _load(library)
    words = [argument.encode("utf-8", "surrogateescape") for argument in arguments]
    index = c_void_p(clang.clang_createIndex(0, 0))
    unit = c_void_p()
    code = clang.clang_parseTranslationUnit2(
        index, source.encode("utf-8", "surrogateescape"), (c_char_p * len(words))(*words), len(words), None, 0,
        _KEEP_GOING, byref(unit),
    )  # fmt: skip
    try:
        if code:
            raise FrontEndError(f"{library} could not parse {source}: error {code}")
        yield FrontEnd(clang, unit)
    finally:
        if unit:
            clang.clang_disposeTranslationUnit(unit)
        clang.clang_disposeIndex(index)


@cache
def _load(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(loaded, f"clang_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded
