# SPDX-License-Identifier: Apache-2.0
"""The rules for a function that runs on an AI core: code that g++ would compile for the host, and bisheng refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from virtual_cann.compiler.declarations import Declarations, Function
from virtual_cann.compiler.expressions import (
    after_template_arguments,
    cast_type,
    has_mark,
    has_word,
    is_argument_of_trait,
    is_call,
    is_converted_whole,
    is_double,
    qualifier,
    spelled,
)
from virtual_cann.compiler.tokens import Diagnostic, Token, closing, split_at_commas, template_start
from virtual_cann.compiler.vocabulary import INSTEAD_OF_KEYWORD, instead_of_libc, is_compile_time


@dataclass(frozen=True)
class DeviceFunction:
    function: Function
    declarations: Declarations
    source: Sequence[Token]  # all of it

    def problems(self) -> Iterator[Diagnostic]:
        yield from self._keywords()
        yield from self._standard_library()
        for index, token in enumerate(self.function.body):
            if token.kind == "number":
                yield from self._literal(index)
            elif token.text == "<<<":
                yield Diagnostic(token.place, "'<<<' in device code: only the host can launch a kernel")
            elif token.kind == "name":
                yield from self._static(index)
                yield from self._global_buffer(index)
                yield from self._construction(index)
                if is_call(self.function.body, index):
                    yield from self._call(index)

    def _keywords(self) -> Iterator[Diagnostic]:
        for part in (self.function.head, self.function.body):
            for index, token in enumerate(part):
                if token.kind != "name" or token.text not in INSTEAD_OF_KEYWORD:
                    continue
                is_deleted = token.text == "delete" and part is self.function.head
                if not is_deleted and not (token.text == "double" and is_argument_of_trait(part, index)):
                    yield Diagnostic(token.place, f"'{token.text}' in device code: {INSTEAD_OF_KEYWORD[token.text]}")

    def _standard_library(self) -> Iterator[Diagnostic]:
        for part in (self.function.head, self.function.body):
            for index, token in enumerate(part):
                if token.kind != "name" or token.text != "std":
                    continue
                name = part[index + 2].text if has_word(part[index + 1 : index + 2], "::") else ""
                if not is_compile_time(name):
                    yield Diagnostic(
                        token.place,
                        f"'{'std::' if name else 'std'}{name}' in device code: the standard library is for hosts; "
                        "what works at compile time (std::is_same, std::numeric_limits, ...) is all that a core has",
                    )

    def _literal(self, index: int) -> Iterator[Diagnostic]:
        """A double literal that is converted as a whole never reaches the core; as an operand it would."""
        literal = self.function.body[index]
        if is_double(literal) and not is_converted_whole(self.function.body, index):
            float_literal = literal.text.rstrip("lL") + "f"
            yield Diagnostic(
                literal.place, f"'{literal.text}' is a double, and an AI core has none: write {float_literal}"
            )

    def _static(self, index: int) -> Iterator[Diagnostic]:
        body = self.function.body
        if body[index].text == "static" and not has_word(body[max(0, index - 1) : index + 3], "constexpr"):
            yield Diagnostic(
                body[index].place,
                "'static' in device code: a core keeps nothing between launches; use a local, or static constexpr",
            )

    def _global_buffer(self, index: int) -> Iterator[Diagnostic]:
        body = self.function.body
        if body[index].text != "SetGlobalBuffer" or body[index + 1].text != "(":
            return
        arguments = split_at_commas(body[index + 2 : closing(body, index + 1)])
        type_ = cast_type(arguments[0]) if arguments else []
        if has_word(type_, "*") and not has_mark(type_, "gm"):
            yield Diagnostic(
                body[index].place,
                f"'{spelled(type_)}' given to SetGlobalBuffer has no address space: write '__gm__ {spelled(type_)}'",
            )

    def _construction(self, index: int) -> Iterator[Diagnostic]:
        """`Type name`: the constructors of the user's own classes are functions too."""
        body = self.function.body
        after = after_template_arguments(body, index)
        if after < len(body) and body[after].kind == "name":
            type_ = body[index].text
            yield from self._host_function_called(body[index], self.declarations.named(type_, owner=type_))

    def _call(self, index: int) -> Iterator[Diagnostic]:
        body, token = self.function.body, self.function.body[index]
        before, owner = body[index - 1].text, self.function.owner
        if before in (".", "->"):
            receiver = body[index - 2].text
            classes = {owner} if receiver == "this" else self._classes_of(receiver)
            callees = [callee for class_ in classes for callee in self.declarations.named(token.text, owner=class_)]
        elif before == "::":
            receiver = qualifier(body, index)
            callees = self.declarations.named(token.text, owner=receiver)
        else:
            receiver = ""
            callees = self.declarations.named(token.text, owner=owner) or self.declarations.named(token.text, owner="")
        if receiver in ("", "this"):
            yield from self._recursion(token)
        if receiver == "" and not callees and (instead := instead_of_libc(token.text)):
            yield Diagnostic(token.place, f"'{token.text}' in device code: the C library is host code; use {instead}")
        if any("global" in callee.marks for callee in callees):
            yield Diagnostic(token.place, f"'{token.text}' is a kernel: device code cannot call it")
        yield from self._host_function_called(token, callees)

    def _recursion(self, token: Token) -> Iterator[Diagnostic]:
        """Overloads may call one another, and templates themselves with other arguments: that ends at compile time."""
        same = [f for f in self.declarations.named(token.text, owner=self.function.owner) if f.body]
        if same == [self.function] and not self.function.is_template:
            yield Diagnostic(
                token.place, f"'{token.text}' calls itself: an AI core has no stack for that; write a loop"
            )

    def _host_function_called(self, token: Token, callees: Sequence[Function]) -> Iterator[Diagnostic]:
        if callees and not any(callee.may_run_on_device for callee in callees):
            name = f"{token.text}::{token.text}" if callees[0].owner == token.text else token.text
            yield Diagnostic(token.place, f"'{name}' is host code and called in device code: declare it __aicore__")

    def _classes_of(self, variable: str) -> set[str]:
        """The user's classes of which the source has a variable with this name."""
        names = {class_.name for class_ in self.declarations.classes}
        found = set()
        for index, token in enumerate(self.source):
            if token.text != variable or not index:
                continue
            before = index - 1
            while before > 0 and self.source[before].text in ("*", "&"):
                before -= 1
            if self.source[before].text == ">":
                before = (template_start(self.source, before) or 0) - 1
            found.add(self.source[before].text)
        return found & names
