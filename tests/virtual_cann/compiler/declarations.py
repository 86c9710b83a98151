# SPDX-License-Identifier: Apache-2.0
"""The functions and classes of a source, found by their brackets: only as much of C++ as the checks need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from virtual_cann.compiler.tokens import Place, Token, closing, split_at_commas, template_end, template_start

DEVICE_MARKS = frozenset({"aicore", "vector", "cube", "mix"})

_CLASS_WORDS = frozenset({"class", "struct", "union"})
_ACCESS_WORDS = frozenset({"public", "private", "protected"})
_NO_FUNCTION_NAMES = frozenset(
    {"alignas", "__attribute__", "decltype", "noexcept", "explicit", "static_assert", "requires", "asm", "__asm__"}
)


@dataclass(frozen=True)
class Function:
    name: str
    owner: str  # the class that it is a member of; "" for none
    head: tuple[Token, ...]  # everything before the body, template parameters included
    parameters: tuple[tuple[Token, ...], ...]
    body: tuple[Token, ...]  # from the initialisers or the `{` to the `}`; empty where it is only declared
    place: Place
    name_start: int

    @cached_property
    def marks(self) -> frozenset[str]:
        return frozenset(token.text for token in self.head if token.kind == "mark")

    @property
    def runs_on_device(self) -> bool:
        return bool(self.marks & DEVICE_MARKS) or "global" in self.marks

    @property
    def may_run_on_device(self) -> bool:
        return self.runs_on_device or any(token.text in ("constexpr", "consteval") for token in self.head)

    @property
    def is_template(self) -> bool:
        return any(token.text == "template" for token in self.head)


@dataclass(frozen=True)
class Class:
    name: str
    head: tuple[Token, ...]


@dataclass
class Declarations:
    functions: list[Function] = field(default_factory=list)
    classes: list[Class] = field(default_factory=list)

    def named(self, name: str, owner: str | None = None) -> list[Function]:
        return [f for f in self.functions if f.name == name and owner in (None, f.owner)]


def find_declarations(tokens: Sequence[Token]) -> Declarations:
    found = Declarations()
    _read_scope(tokens, 0, len(tokens), "", found)
    return found


def _read_scope(tokens: Sequence[Token], index: int, end: int, owner: str, found: Declarations) -> None:
    while index < end:
        index = _read_declaration(tokens, index, end, owner, found)


def _read_declaration(tokens: Sequence[Token], start: int, end: int, owner: str, found: Declarations) -> int:
    """Reads one declaration and returns the index after it."""
    index = start
    parenthesis: int | None = None  # opens the parameters, if this turns out to be a function
    while index < end:
        text = tokens[index].text
        if text == ";" and parenthesis is not None:
            found.functions.append(_function(tokens, start, parenthesis, index, index, owner))
        if text in (";", "}"):  # a } without a {: g++ will report it
            return index + 1
        if text in (":", "{") and parenthesis is not None:
            return _read_body(tokens, start, parenthesis, index, owner, found)
        if text == ":" and index == start + 1 and tokens[start].text in _ACCESS_WORDS:
            return index + 1
        if text == "{" and _opens_namespace(tokens[start:index]):
            _read_scope(tokens, index + 1, closing(tokens, index), owner, found)
            return closing(tokens, index) + 1
        if text == "{":
            _read_class(tokens, tokens[start:index], index, found)
        elif text == "(" and parenthesis is None and _names_function(tokens, start, index):
            parenthesis = index
        index = _skip(tokens, index, end)
    return end


def _skip(tokens: Sequence[Token], index: int, end: int) -> int:
    """The index after a token; after the matching end, if the token opens a bracket or an initialiser."""
    text = tokens[index].text
    if text in ("(", "[", "{"):
        return closing(tokens, index) + 1
    if text == "<":
        return (template_end(tokens, index) or index) + 1
    index += 1
    if text == "=" and tokens[index - 2].text != "operator":
        while index < end and tokens[index].text != ";":
            index = closing(tokens, index) + 1 if tokens[index].text in ("(", "[", "{") else index + 1
    return index


def _read_body(
    tokens: Sequence[Token], start: int, parenthesis: int, head_end: int, owner: str, found: Declarations
) -> int:
    opening = head_end if tokens[head_end].text == "{" else _after_member_initialisers(tokens, head_end + 1)
    end = closing(tokens, opening) + 1
    found.functions.append(_function(tokens, start, parenthesis, head_end, end, owner))
    return end


def _read_class(tokens: Sequence[Token], head: Sequence[Token], opening: int, found: Declarations) -> None:
    """Reads the members where the brace opens a class; an enum or an initialiser has none to read."""
    words = [token.text for token in _outside_templates(head)]
    keyword = next((word for word in words if word in _CLASS_WORDS), None)
    if keyword is None or "enum" in words:
        return
    bases = words.index(":") if ":" in words else len(words)
    names = [word for word in words[words.index(keyword) + 1 : bases] if word.isidentifier() and word != "final"]
    name = names[-1] if names else ""
    found.classes.append(Class(name, tuple(head)))
    _read_scope(tokens, opening + 1, closing(tokens, opening), name, found)


def _opens_namespace(head: Sequence[Token]) -> bool:
    return any(token.text == "namespace" for token in head) or (
        len(head) == 2 and head[0].text == "extern" and head[1].kind == "string"
    )


def _names_function(tokens: Sequence[Token], start: int, parenthesis: int) -> bool:
    name = _name_before(tokens, parenthesis)
    if name is None or name < start:
        return any(token.text == "operator" for token in tokens[max(start, parenthesis - 3) : parenthesis])
    return tokens[name].text not in _NO_FUNCTION_NAMES


def _name_before(tokens: Sequence[Token], parenthesis: int) -> int | None:
    """The index of the name in `name(` or `name<...>(`."""
    index = parenthesis - 1
    if index >= 0 and tokens[index].text == ">":
        opening = template_start(tokens, index)
        index = opening - 1 if opening is not None else -1
    return index if index >= 0 and tokens[index].kind == "name" else None


def _function(tokens: Sequence[Token], start: int, parenthesis: int, head_end: int, end: int, owner: str) -> Function:
    index = _name_before(tokens, parenthesis)
    name = tokens[index].text if index is not None else "operator"
    if index is not None and index > start:
        before = tokens[index - 1].text
        if before == "~":
            name = f"~{name}"
        elif before == "::":  # a member, defined outside its class
            qualifier = _name_before(tokens, index - 1)
            owner = tokens[qualifier].text if qualifier is not None and qualifier >= start else owner
    parameters = split_at_commas(tokens[parenthesis + 1 : closing(tokens, parenthesis)])
    return Function(
        name,
        owner,
        tuple(tokens[start:head_end]),
        tuple(tuple(parameter) for parameter in parameters),
        tuple(tokens[head_end:end]),
        tokens[index if index is not None else parenthesis].place,
        tokens[index if index is not None else parenthesis].start,
    )


def _after_member_initialisers(tokens: Sequence[Token], index: int) -> int:
    """The index of the `{` that opens the constructor's body, after `: a(1), b{2}`."""
    while index < len(tokens):
        is_initialiser = tokens[index].text in ("(", "{")
        index = _skip(tokens, index, len(tokens))
        if is_initialiser and index < len(tokens) and tokens[index].text == "{":
            return index
    return len(tokens) - 1


def _outside_templates(tokens: Sequence[Token]) -> Iterator[Token]:
    index = 0
    while index < len(tokens):
        if tokens[index].text == "<":
            index = (template_end(tokens, index) or index) + 1
        else:
            yield tokens[index]
            index += 1
