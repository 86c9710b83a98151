# SPDX-License-Identifier: Apache-2.0
"""Errors that bisheng reports in Ascend C and g++ does not: in kernels, classes, and calls between host and device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from virtual_cann.compiler.declarations import DEVICE_MARKS, Declarations, Function
from virtual_cann.compiler.device_function import DeviceFunction
from virtual_cann.compiler.expressions import has_mark, has_word, is_call, spelled
from virtual_cann.compiler.tokens import Diagnostic, Token
from virtual_cann.compiler.vocabulary import INSTEAD_OF_KEYWORD


def check(tokens: Sequence[Token], declarations: Declarations) -> list[Diagnostic]:
    problems = [*_check_classes(declarations)]
    for function in declarations.functions:
        if "global" in function.marks:
            problems += _check_kernel(function)
            problems += _check_parameters(function, declarations)
        if function.runs_on_device:
            problems += DeviceFunction(function, declarations, tokens).problems()
        else:
            problems += _check_host_function(function, declarations)
    return sorted(set(problems), key=lambda problem: (problem.place.file, problem.place.line, problem.text))


def _check_kernel(function: Function) -> Iterator[Diagnostic]:
    name, place = function.name, function.place
    if not function.marks & DEVICE_MARKS:
        yield Diagnostic(place, f"'{name}' is __global__ and not __aicore__: it would have no core to run on")
    mix = [token.arguments.replace(" ", "") for token in function.head if token.kind == "mark" and token.text == "mix"]
    if "cube" in function.marks or mix not in ([], ["0,1"]):
        yield Diagnostic(place, f"'{name}' asks for cube cores: the virtual CANN has vector cores only")
    if function.owner:
        yield Diagnostic(place, f"'{name}' is __global__ and a member of '{function.owner}': make it a free function")
    type_ = [token for token in function.head if token.kind != "mark" and token.end <= function.name_start]
    if not has_word(type_, "void") or has_word(type_, "*"):
        yield Diagnostic(place, f"'{name}' is __global__ and returns a value: a kernel returns void")


def _check_parameters(kernel: Function, declarations: Declarations) -> Iterator[Diagnostic]:
    for parameter in kernel.parameters:
        text, place = spelled(parameter), parameter[0].place
        if has_word(parameter, "&", "&&"):
            yield Diagnostic(
                place, f"'{text}' is a reference to the host's memory: a kernel takes scalars and structs by value"
            )
        elif has_word(parameter, "*") and not has_mark(parameter, "gm"):
            # CANN 9's manual takes a plain pointer as one to GM, CANN 8's does not: __gm__ is right for both.
            yield Diagnostic(place, f"'{text}' has no address space: write __gm__ before it, or GM_ADDR")
        elif has_word(parameter, "std") or _has_object(parameter, declarations):
            yield Diagnostic(
                place, f"'{text}' is no plain struct: a kernel takes scalars, plain structs and __gm__ pointers"
            )


def _has_object(parameter: Sequence[Token], declarations: Declarations) -> bool:
    """Whether the type is a user's class with a constructor or a destructor, which would not run for the copy."""
    return any(
        declarations.named(name, owner=token.text) for token in parameter for name in (token.text, f"~{token.text}")
    )


def _check_classes(declarations: Declarations) -> Iterator[Diagnostic]:
    device_classes = {function.owner for function in declarations.functions if function.runs_on_device}
    for class_ in declarations.classes:
        if class_.name not in device_classes:
            continue
        if has_word(class_.head, "virtual"):
            yield Diagnostic(class_.head[0].place, f"'{class_.name}' has a virtual base: an AI core cannot have one")
        for function in declarations.functions:
            if function.owner == class_.name and has_word(function.head, "virtual"):
                yield Diagnostic(function.place, f"'virtual' in device code: {INSTEAD_OF_KEYWORD['virtual']}")


def _check_host_function(function: Function, declarations: Declarations) -> Iterator[Diagnostic]:
    body = function.body
    for index, token in enumerate(body):
        if not is_call(body, index) or body[index - 1].text in (".", "->", "::"):
            continue
        callees = declarations.named(token.text, owner="")
        if callees and all("global" in callee.marks for callee in callees):
            yield Diagnostic(token.place, f"'{token.text}' is a kernel: launch it with <<<blocks, nullptr, stream>>>")
        elif callees and all(callee.runs_on_device for callee in callees) and not function.may_run_on_device:
            yield Diagnostic(
                token.place, f"'{token.text}' is __aicore__ and called on the host: only device code may call it"
            )
