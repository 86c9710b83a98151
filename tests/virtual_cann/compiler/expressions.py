# SPDX-License-Identifier: Apache-2.0
"""What the tokens of an expression mean, as far as tokens alone can tell."""

from __future__ import annotations

import re
from collections.abc import Sequence

from virtual_cann.compiler.tokens import Token, closing, template_end, template_start

_KEYWORDS_BEFORE_VALUE = frozenset({"return", "case", "else", "do", "co_return", "sizeof"})
_FLOAT_TYPES = frozenset({"float", "half", "bfloat16_t"})
_OPENS_VALUE = frozenset({"=", "(", "{", ",", "return"})
_CLOSES_VALUE = frozenset({";", ")", "}", ","})
_DECIMAL_DOUBLE = re.compile(r"[\d']*\.[\d']*([eE][+-]?\d+)?[lL]?|[\d']+[eE][+-]?\d+[lL]?")
_HEXADECIMAL_DOUBLE = re.compile(r"0[xX][\da-fA-F'.]+[pP][+-]?\d+[lL]?")
_TYPE_TRAIT = re.compile(r"[iI]s_?\w+|conditional(_t)?")


def after_template_arguments(tokens: Sequence[Token], index: int) -> int:
    """The index after a name and the <...> that may follow it."""
    index += 1
    if index < len(tokens) and tokens[index].text == "<":
        index = (template_end(tokens, index) or index) + 1
    return index


def is_call(tokens: Sequence[Token], index: int) -> bool:
    """Whether a name is called: followed by ( or <...>(, and not itself a variable that is being declared."""
    after = after_template_arguments(tokens, index)
    if tokens[index].kind != "name" or after >= len(tokens) or tokens[after].text != "(":
        return False
    before = tokens[index - 1] if index else None
    if before is None or before.text in _KEYWORDS_BEFORE_VALUE:
        return True
    if before.text == ">":
        return template_start(tokens, index - 1) is None
    return before.kind not in ("name", "mark")


def qualifier(tokens: Sequence[Token], index: int) -> str:
    """The name before the `::` that stands before `index`; "" for a global `::name`."""
    before = index - 2
    if tokens[before].text == ">":
        before = (template_start(tokens, before) or 0) - 1
    token = tokens[before]
    return token.text if token.kind == "name" and token.text not in _KEYWORDS_BEFORE_VALUE else ""


def is_double(token: Token) -> bool:
    return bool(_DECIMAL_DOUBLE.fullmatch(token.text) or _HEXADECIMAL_DOUBLE.fullmatch(token.text))


def is_converted_whole(tokens: Sequence[Token], index: int) -> bool:
    """Whether a literal is a whole value, as in `float x = -1.0;`, `f(1.0)` and `(float)1.0`, and not an operand."""
    if tokens[index + 1].text not in _CLOSES_VALUE:
        return False
    before = index - 1
    while before > 0 and tokens[before].text in ("-", "+"):
        before -= 1
    if tokens[before].text == ")" and tokens[before - 2].text == "(":  # (T)1.0; but (x) - 1.0
        return before == index - 1 or tokens[before - 1].text in _FLOAT_TYPES
    return tokens[before].text in _OPENS_VALUE


def is_argument_of_trait(tokens: Sequence[Token], index: int) -> bool:
    """Whether the type is an argument of a type trait, as in `std::is_same_v<T, double>`."""
    while index > 0 and tokens[index].text not in (";", "{", "}", "(", ")"):
        if tokens[index].text == "<" and _TYPE_TRAIT.fullmatch(tokens[index - 1].text):
            return True
        index -= 1
    return False


def cast_type(argument: Sequence[Token]) -> Sequence[Token]:
    """The type that the whole expression is cast to, in either notation; empty if it is no cast."""
    if argument and argument[0].text == "(" and closing(argument, 0) < len(argument) - 1:
        return argument[1 : closing(argument, 0)]
    if len(argument) > 1 and argument[0].text in ("reinterpret_cast", "static_cast", "const_cast"):
        return argument[2 : template_end(argument, 1) or 2]
    return []


def has_mark(tokens: Sequence[Token], mark: str) -> bool:
    return any(token.kind == "mark" and token.text == mark for token in tokens)


def has_word(tokens: Sequence[Token], *words: str) -> bool:
    return any(token.text in words for token in tokens if token.kind in ("name", "punctuation"))


def spelled(tokens: Sequence[Token]) -> str:
    text = " ".join(f"__{token.text}__" if token.kind == "mark" else token.text for token in tokens)
    return re.sub(r" (?=[*&,<>)\]])|(?<=[<(\[]) ", "", text).replace(" :: ", "::")
