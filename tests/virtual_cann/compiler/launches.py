# SPDX-License-Identifier: Apache-2.0
"""kernel<<<blocks, l2, stream>>>(arguments) becomes a call of a struct of machine/launch.h."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtual_cann.compiler.declarations import Declarations
from virtual_cann.compiler.tokens import Diagnostic, Token, closing, split_at_commas, template_start

_SHAPE = "a launch is written kernel<<<blocks, nullptr, stream>>>(arguments)"


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: str


def rewrite(
    text: str, tokens: Sequence[Token], declarations: Declarations, through_plugin: bool
) -> tuple[str, list[Diagnostic]]:
    """The text with its launches rewritten, without moving any line, and the problems of the launches."""
    kernels = {function.name for function in declarations.functions if "global" in function.marks}
    launch = "PluginLaunch" if through_plugin else "Launch"
    edits: list[_Edit] = []
    problems: list[Diagnostic] = []
    for index, token in enumerate(tokens):
        if token.text == "<<<":
            found = _rewrite_one(text, tokens, index, kernels, launch)
            if isinstance(found, Diagnostic):
                problems.append(found)
            else:
                edits += found
    for edit in reversed(edits):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text, problems


def _rewrite_one(
    text: str, tokens: Sequence[Token], opening: int, kernels: set[str], launch: str
) -> list[_Edit] | Diagnostic:
    place = tokens[opening].place
    end = _find_end(tokens, opening)
    first, name = _find_callee(tokens, opening)
    if end is None or tokens[name].kind != "name":
        return Diagnostic(place, _SHAPE)
    kernel, parenthesis = tokens[name].text, tokens[end + 3]
    if kernel not in kernels:
        return Diagnostic(place, f"'{kernel}' is launched, but no __global__ function of this source has that name")
    pieces = split_at_commas(tokens[opening + 1 : end])
    if len(pieces) == 2:
        return Diagnostic(
            place,
            f"'{kernel}<<<..., ...>>>' has two arguments: the second is the L2 control (CANN 8) or the dynamic UB "
            "(CANN 9), and the stream would be null; write <<<blocks, nullptr, stream>>>",
        )
    if len(pieces) != 3 or not all(pieces):
        return Diagnostic(place, f"'{kernel}<<<...>>>' has not three arguments: write <<<blocks, nullptr, stream>>>")

    # The callee moves behind the configuration, joined into one line; its line breaks stay, for the line numbers.
    callee = text[tokens[first].start : tokens[opening].start]
    called = " ".join(callee.split())
    separator = "" if tokens[end + 4].text == ")" else ", "
    return [
        _Edit(
            tokens[first].start,
            tokens[opening].end,
            "\n" * callee.count("\n") + f'::virtual_cann::{launch}{{"{kernel}", static_cast<unsigned int>(',
        ),
        _Edit(pieces[0][-1].end, pieces[0][-1].end, ")"),
        _Edit(tokens[end].start, tokens[end + 2].end, "}.run"),
        _Edit(parenthesis.start, parenthesis.end, f"({called}{separator}"),
    ]


def _find_end(tokens: Sequence[Token], opening: int) -> int | None:
    """The index of the first > of the >>>( that ends the configuration."""
    index = opening + 1
    while index + 4 < len(tokens) and tokens[index].text not in (";", ")", "}"):
        if tokens[index].text in ("(", "[", "{"):
            index = closing(tokens, index)
        elif [token.text for token in tokens[index : index + 4]] == [">", ">", ">", "("] and (
            tokens[index + 2].end - tokens[index].start == len(">>>")
        ):
            return index
        index += 1
    return None


def _find_callee(tokens: Sequence[Token], opening: int) -> tuple[int, int]:
    """The indices of the first token of `ns::kernel<T>` and of its last name, before the `<<<`."""
    name = opening - 1
    if tokens[name].text == ">":
        name = (template_start(tokens, name) or 1) - 1
    first = name
    while first >= 1 and tokens[first - 1].text == "::":
        first -= 2 if first >= 2 and tokens[first - 2].kind == "name" else 1
    return first, name
