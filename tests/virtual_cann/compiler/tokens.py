# SPDX-License-Identifier: Apache-2.0
"""Tokens of preprocessed C++, each with its place in the user's source."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# The keywords of bisheng as include/bisheng_builtins.h defines them. g++ never sees them.
MARK = re.compile(r"__attribute__\(\(virtual_cann_(\w+)(?:\(([^()]*)\))?\)\)")

_LINE_MARKER = re.compile(r'^# (\d+) "((?:[^"\\]|\\.)*)"((?: \d)*)$', re.MULTILINE)
_SYSTEM_HEADER = "3"
_TOKEN = re.compile(
    rf"""
    (?P<mark> {MARK.pattern})
  | (?P<pragma> ^[ \t]*\#.*$)
  | (?P<string> (?:u8|[uUL])?R"(?P<delimiter>[^()\\\s]*)\(.*?\)(?P=delimiter)" | (?:u8|[uUL])?"(?:[^"\\\n]|\\.)*")
  | (?P<character> (?:u8|[uUL])?'(?:[^'\\\n]|\\.)+')
  | (?P<number> \.?\d(?:[eEpP][+-]|'\w|[\w.])*)
  | (?P<name> [A-Za-z_$]\w*)
  | (?P<punctuation> <<< | <<= | << | <= | >= | -> \*? | :: | \+\+ | -- | && | \|\| | [-+*/%&|^=!]= | \.\.\. | \S)
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Place:
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Token:
    kind: str  # mark, string, character, number, name or punctuation
    text: str  # of a mark: its name, without the attribute syntax
    start: int  # in the preprocessed text
    end: int
    place: Place
    arguments: str = ""  # of a mark


@dataclass(frozen=True)
class Diagnostic:
    """An error of the compiler, with its source line."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: error: {self.text}"


def tokenize(text: str, is_users: Callable[[str], bool]) -> list[Token]:
    """The tokens of the user's own files. Headers of the system and of the API are not checked, and left out."""
    tokens: list[Token] = []
    markers = list(_LINE_MARKER.finditer(text))
    for marker, following in zip(markers, [*markers[1:], None], strict=True):
        file = re.sub(r"\\(.)", r"\1", marker[2])
        if _SYSTEM_HEADER in marker[3].split() or not is_users(file):
            continue
        start, end = marker.end() + 1, following.start() if following else len(text)
        tokens += _tokens_of(text, start, end, file, int(marker[1]))
    return tokens


def _tokens_of(text: str, start: int, end: int, file: str, line: int) -> list[Token]:
    tokens = []
    counted = start
    for match in _TOKEN.finditer(text, start, end):
        line += text.count("\n", counted, match.start())
        counted = match.start()
        kind = match.lastgroup if match.lastgroup != "delimiter" else "string"
        if match["mark"]:
            tokens.append(Token("mark", match[2], match.start(), match.end(), Place(file, line), match[3] or ""))
        elif not match["pragma"]:
            assert kind is not None
            tokens.append(Token(kind, match[0], match.start(), match.end(), Place(file, line)))
    return tokens


def without_marks(text: str) -> str:
    return MARK.sub(lambda mark: " " * len(mark[0]), text)


def closing(tokens: Sequence[Token], opening: int) -> int:
    """The index of the bracket that closes the one at `opening`; that of the last token if none does."""
    depth = 0
    for index in range(opening, len(tokens)):
        if tokens[index].kind != "punctuation":
            continue
        if tokens[index].text in _PAIRS:
            depth += 1
        elif tokens[index].text in _PAIRS.values():
            depth -= 1
            if depth == 0:
                return index
    return len(tokens) - 1


def split_at_commas(tokens: Sequence[Token]) -> list[list[Token]]:
    """The pieces between top-level commas; brackets and template < > protect a comma. No tokens give no pieces."""
    pieces: list[list[Token]] = [[]]
    depth = 0
    for index, token in enumerate(tokens):
        if token.text in _PAIRS:
            depth += 1
        elif token.text in _PAIRS.values():
            depth -= 1
        elif token.text == "<" and index and tokens[index - 1].kind == "name" and template_end(tokens, index):
            depth += 1
        elif token.text == ">" and depth and template_start(tokens, index) is not None:
            depth -= 1
        if token.text == "," and depth == 0:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces if tokens else []


def template_end(tokens: Sequence[Token], opening: int) -> int | None:
    """The index of the `>` that closes the `<` at `opening`; None where it is a comparison."""
    depth = 0
    index = opening
    while index < len(tokens):
        text = tokens[index].text
        if text == "<":
            depth += 1
        elif text == ">":
            depth -= 1
            if depth == 0:
                return index
        elif text in ("(", "["):
            index = closing(tokens, index)
        elif text in (";", "{", "}", ")", "]", "&&", "||", "<<<"):
            return None
        index += 1
    return None


def template_start(tokens: Sequence[Token], end: int) -> int | None:
    """The index of the `<` that opens what the `>` at `end` closes; None where it is a comparison."""
    depth = 0
    for index in range(end, -1, -1):
        text = tokens[index].text
        if text == ">":
            depth += 1
        elif text == "<":
            depth -= 1
            if depth == 0:
                return index if index and tokens[index - 1].kind == "name" else None
        elif text in (";", "{", "}", "&&", "||"):
            return None
    return None
