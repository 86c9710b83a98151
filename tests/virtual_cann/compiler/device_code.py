# SPDX-License-Identifier: Apache-2.0
"""What may not stand in code that runs on an AI core, and would pass unnoticed where g++ compiles it for the host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from virtual_cann.compiler.declarations import DEVICE_MARKS, Declarations, Function
from virtual_cann.compiler.tokens import Problem, Token, closing, split_at_commas, template_end, template_start

_INSTEAD_OF_KEYWORD = {
    "double": "an AI core has no double: use float",
    "new": "an AI core has no heap: take UB from TPipe::InitBuffer",
    "delete": "an AI core has no heap: TQue::FreeTensor gives a buffer back",
    "throw": "an AI core has no exceptions: check on the host, before the launch",
    "try": "an AI core has no exceptions: check on the host, before the launch",
    "dynamic_cast": "an AI core has no type information at run time: use templates",
    "typeid": "an AI core has no type information at run time: use templates",
    "virtual": "an AI core has no virtual functions: use templates",
    "thread_local": "an AI core has no threads: use a member or a local variable",
}

# Everything of std:: that leaves no code behind.
_COMPILE_TIME_STD = re.compile(
    r"(is|has|add|remove|make|enable|conjunction|disjunction|negation)(_\w+)?|conditional(_t)?|decay(_t)?|common_type(_t)?"
    r"|integral_constant|bool_constant|true_type|false_type|numeric_limits|underlying_type(_t)?|void_t|declval"
    r"|(make_)?(index|integer)_sequence\w*|u?int(_least|_fast)?\d+_t|u?intptr_t|size_t|ptrdiff_t|nullptr_t|byte"
)

_MATHS = frozenset(
    f"{name}{suffix}"
    for name in [
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "pow",
        "sqrt",
        "cbrt",
        "hypot",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "atan2",
        "sinh",
        "cosh",
        "tanh",
        "erf",
        "erfc",
        "fabs",
        "floor",
        "ceil",
        "round",
        "trunc",
        "rint",
        "nearbyint",
        "lround",
        "fmod",
        "fmin",
        "fmax",
        "fma",
        "ldexp",
        "frexp",
        "copysign",
        "isnan",
        "isinf",
        "isfinite",
    ]
    for suffix in ("", "f")
)
_MEMORY = frozenset({"malloc", "calloc", "realloc", "free", "alloca"})
_COPIES = frozenset({"memcpy", "memmove", "memset", "memcmp"})
_REST_OF_LIBC = frozenset(
    [
        "abs",
        "labs",
        "abort",
        "exit",
        "rand",
        "srand",
        "time",
        "clock",
        "puts",
        "putchar",
        "fprintf",
        "sprintf",
        "snprintf",
        "vprintf",
        "strlen",
        "strcmp",
        "strcpy",
    ]
)
_LIBC = _MATHS | _MEMORY | _COPIES | _REST_OF_LIBC | {"printf"}

_DOUBLE_LITERAL = re.compile(r"(?!0[xX])(\d['\d]*)?\.?\d*([eE][+-]?\d+)?|0[xX][\w.]+[pP][+-]?\d+")
_OPENS_VALUE = frozenset({"=", "(", "{", ",", "return", "<"})
_CLOSES_VALUE = frozenset({";", ")", "}", ",", ">"})
_KEYWORDS_BEFORE_VALUE = frozenset({"return", "case", "else", "do", "throw", "co_return", "sizeof"})


def check(tokens: Sequence[Token], declarations: Declarations) -> list[Problem]:
    problems = [*_check_classes(declarations)]
    for function in declarations.functions:
        if "global" in function.marks:
            problems += _check_kernel(function, declarations)
        if function.runs_on_device:
            problems += _DeviceFunction(function, declarations, tokens).problems()
        elif function.body:
            problems += _check_host_function(function, declarations)
    return sorted(set(problems), key=lambda problem: (problem.place.file, problem.place.line, problem.text))


def _check_kernel(function: Function, declarations: Declarations) -> Iterator[Problem]:
    name = function.name
    if not function.marks & DEVICE_MARKS:
        yield Problem(function.place, f"'{name}' is __global__ and not __aicore__: it would have no core to run on")
    if "cube" in function.marks or any(
        token.text == "mix" and token.arguments.replace(" ", "") != "0,1" for token in function.head
    ):
        yield Problem(function.place, f"'{name}' asks for cube cores: the virtual CANN has vector cores only")
    if function.owner:
        yield Problem(
            function.place, f"'{name}' is __global__ and a member of '{function.owner}': make it a free function"
        )
    before_name = [token.text for token in function.head[: _index_of(function, function.head)] if token.kind != "mark"]
    if "void" not in before_name or before_name[-1:] == ["*"]:
        yield Problem(function.place, f"'{name}' is __global__ and returns a value: a kernel returns void")
    for parameter in function.parameters:
        text = _text(parameter)
        if any(token.text in ("&", "&&") for token in parameter):
            yield Problem(
                parameter[0].place,
                f"'{text}': a kernel takes scalars, plain structs by value and __gm__ pointers; a reference would be to the "
                "host's memory",
            )
        elif any(token.text == "*" for token in parameter) and not _is_in(parameter, "gm"):
            yield Problem(
                parameter[0].place,
                f"'{text}' has no address space: write __gm__ before it, or GM_ADDR (only CANN 9 takes it for __gm__)",
            )
        elif _std_name(parameter) or any(
            declarations.named(name, owner=token.text) for token in parameter for name in (token.text, f"~{token.text}")
        ):
            yield Problem(
                parameter[0].place,
                f"'{text}': a kernel takes scalars, plain structs and __gm__ pointers; this type is no plain struct",
            )


def _check_classes(declarations: Declarations) -> Iterator[Problem]:
    device_classes = {function.owner for function in declarations.functions if function.runs_on_device}
    for class_ in declarations.classes:
        if class_.name not in device_classes:
            continue
        if any(token.text == "virtual" for token in class_.head):
            yield Problem(class_.head[0].place, f"'{class_.name}' has a virtual base: an AI core cannot have one")
        for function in declarations.functions:
            if function.owner == class_.name and any(token.text == "virtual" for token in function.head):
                yield Problem(function.place, f"'virtual' in device code: {_INSTEAD_OF_KEYWORD['virtual']}")


def _check_host_function(function: Function, declarations: Declarations) -> Iterator[Problem]:
    for index, token in enumerate(function.body):
        if not _is_free_call(function.body, index):
            continue
        callees = declarations.named(token.text, owner="")
        if callees and all("global" in callee.marks for callee in callees):
            yield Problem(token.place, f"'{token.text}' is a kernel: launch it with <<<blocks, nullptr, stream>>>")
        elif callees and all(callee.runs_on_device for callee in callees) and not function.may_run_on_device:
            yield Problem(
                token.place, f"'{token.text}' is __aicore__ and called on the host: only device code can call it"
            )


class _DeviceFunction:
    """The rules for one function that runs on a core."""

    def __init__(self, function: Function, declarations: Declarations, tokens: Sequence[Token]) -> None:
        self.function = function
        self.declarations = declarations
        self.file = tokens

    def problems(self) -> Iterator[Problem]:
        for token in (*self.function.head, *self.function.body):
            if token.kind == "name" and token.text in _INSTEAD_OF_KEYWORD and not self._is_deleted(token):
                yield Problem(token.place, f"'{token.text}' in device code: {_INSTEAD_OF_KEYWORD[token.text]}")
        for part in (self.function.head, self.function.body):
            yield from self._check_std(part)
        body = self.function.body
        for index, token in enumerate(body):
            if token.kind == "number":
                yield from self._check_literal(body, index)
            elif token.text == "static":
                yield from self._check_static(body, index)
            elif token.text == "SetGlobalBuffer":
                yield from self._check_global_buffer(body, index)
            elif token.text == "<<<":
                yield Problem(token.place, "'<<<' in device code: only the host can launch a kernel")
            elif token.kind == "name":
                yield from self._check_construction(body, index)
                if _opens_call(body, index):
                    yield from self._check_call(body, index)

    def _is_deleted(self, token: Token) -> bool:
        return token.text == "delete" and token in self.function.head

    def _check_std(self, tokens: Sequence[Token]) -> Iterator[Problem]:
        for index, token in enumerate(tokens):
            if token.text != "std" or token.kind != "name":
                continue
            name = _std_name(tokens[index:])
            if name is None or not _COMPILE_TIME_STD.fullmatch(name):
                spelled = f"std::{name}" if name else "std"
                yield Problem(
                    token.place,
                    f"'{spelled}' in device code: the standard library is host code; what works at compile time "
                    "(std::is_same, std::numeric_limits, ...) is all that a core can use",
                )

    def _check_literal(self, body: Sequence[Token], index: int) -> Iterator[Problem]:
        """A double that is converted as a whole (float x = 1.0;) never reaches the core; one in arithmetic would."""
        literal = body[index]
        if literal.text.isdigit() or not _DOUBLE_LITERAL.fullmatch(literal.text.rstrip("lL")):
            return
        if not re.search(r"[.eEpP]", literal.text) or re.match(r"0[xX][^pP]*$", literal.text):
            return
        before = index - 1
        while before > 0 and body[before].text in ("-", "+"):
            before -= 1
        if body[before].text not in _OPENS_VALUE or body[index + 1].text not in _CLOSES_VALUE:
            yield Problem(
                literal.place,
                f"'{literal.text}' is a double, and an AI core has none: write {literal.text.rstrip('lL')}f",
            )

    def _check_static(self, body: Sequence[Token], index: int) -> Iterator[Problem]:
        if not any(token.text == "constexpr" for token in body[max(0, index - 1) : index + 3]):
            yield Problem(
                body[index].place,
                "'static' in device code: a core keeps nothing between launches; use a member, a local, or static constexpr",
            )

    def _check_global_buffer(self, body: Sequence[Token], index: int) -> Iterator[Problem]:
        if body[index + 1].text != "(":
            return
        arguments = split_at_commas(body[index + 2 : closing(body, index + 1)])
        cast = _cast_type(arguments[0]) if arguments else []
        if any(token.text == "*" for token in cast) and not _is_in(cast, "gm"):
            yield Problem(
                body[index].place,
                f"'{_text(cast)}' given to SetGlobalBuffer has no address space: write '__gm__ {_text(cast)}'",
            )

    def _check_construction(self, body: Sequence[Token], index: int) -> Iterator[Problem]:
        """`Type name`: the constructors of the user's own classes are functions too."""
        type_ = body[index].text
        after = index + 1
        if body[after].text == "<":
            after = (template_end(body, after) or after) + 1
        if after >= len(body) or body[after].kind != "name":
            return
        constructors = self.declarations.named(type_, owner=type_)
        if constructors and not any(constructor.may_run_on_device for constructor in constructors):
            yield _host_function_called(body[index], f"{type_}::{type_}")

    def _check_call(self, body: Sequence[Token], index: int) -> Iterator[Problem]:
        token, before = body[index], body[index - 1].text
        if before in (".", "->"):
            receiver = body[index - 2].text
            classes = {self.function.owner} if receiver == "this" else self._classes_of(receiver)
            callees = [callee for class_ in classes for callee in self.declarations.named(token.text, owner=class_)]
            if receiver == "this":
                yield from self._check_recursion(token)
        elif before == "::":
            qualifier = _qualifier(body, index - 2)
            callees = self.declarations.named(token.text, owner=qualifier)
            if not qualifier:  # std:: is judged apart, AscendC:: is not the user's
                yield from self._check_libc(token, callees)
        else:
            members = self.declarations.named(token.text, owner=self.function.owner)
            callees = members or self.declarations.named(token.text, owner="")
            yield from self._check_libc(token, callees)
            yield from self._check_recursion(token)
        if any("global" in callee.marks for callee in callees):
            yield Problem(token.place, f"'{token.text}' is a kernel: device code cannot call it")
        elif callees and not any(callee.may_run_on_device for callee in callees):
            yield _host_function_called(token, token.text)

    def _check_recursion(self, token: Token) -> Iterator[Problem]:
        """Overloads may call one another, and templates themselves with other arguments: that ends at compile time."""
        same = [f for f in self.declarations.named(token.text, owner=self.function.owner) if f.body]
        if same == [self.function] and not self.function.is_template:
            yield Problem(
                token.place, f"'{token.text}' calls itself: an AI core has no stack for recursion; write a loop"
            )

    def _check_libc(self, token: Token, users_own: Sequence[Function]) -> Iterator[Problem]:
        if token.text not in _LIBC or users_own:
            return
        if token.text == "printf" and self._uses_namespace("AscendC"):
            return
        if token.text in _MATHS:
            instead = "the vector functions of AscendC (Exp, Ln, Sqrt, ...) on a LocalTensor"
        elif token.text in _COPIES:
            instead = "AscendC::DataCopy or AscendC::Duplicate"
        elif token.text in _MEMORY:
            instead = "TPipe::InitBuffer"
        elif token.text == "printf":
            instead = "AscendC::printf"
        else:
            instead = "code of your own that is __aicore__"
        yield Problem(token.place, f"'{token.text}' in device code: the C library is host code; use {instead}")

    def _uses_namespace(self, name: str) -> bool:
        texts = [token.text for token in self.file]
        return any(texts[i : i + 3] == ["using", "namespace", name] for i in range(len(texts)))

    def _classes_of(self, variable: str) -> set[str]:
        """The user's classes that some variable of this name has."""
        names = {class_.name for class_ in self.declarations.classes}
        found = set()
        for index, token in enumerate(self.file):
            if token.text != variable or not index:
                continue
            before = index - 1
            while before > 0 and self.file[before].text in ("*", "&"):
                before -= 1
            if self.file[before].text == ">":
                opening = template_start(self.file, before)
                before = opening - 1 if opening is not None else before
            if self.file[before].text in names:
                found.add(self.file[before].text)
        return found


def _host_function_called(token: Token, name: str) -> Problem:
    return Problem(token.place, f"'{name}' is host code and called in device code: declare it __aicore__")


def _opens_call(body: Sequence[Token], index: int) -> bool:
    """Whether a name is called: followed by ( or <...>(, and not the name of a variable that is being declared."""
    after = index + 1
    if after < len(body) and body[after].text == "<":
        after = (template_end(body, after) or after) + 1
    if after >= len(body) or body[after].text != "(":
        return False
    before = body[index - 1] if index else None
    if before is None or before.text in _KEYWORDS_BEFORE_VALUE:
        return True
    if before.text == ">":
        return template_start(body, index - 1) is None
    return before.kind not in ("name", "mark")


def _qualifier(body: Sequence[Token], index: int) -> str:
    """The name before a `::`; nothing where that stands alone."""
    if body[index].text == ">":
        index = (template_start(body, index) or 0) - 1
    return body[index].text if body[index].kind == "name" and body[index].text not in _KEYWORDS_BEFORE_VALUE else ""


def _is_free_call(body: Sequence[Token], index: int) -> bool:
    return body[index].kind == "name" and _opens_call(body, index) and body[index - 1].text not in (".", "->", "::")


def _cast_type(argument: Sequence[Token]) -> Sequence[Token]:
    """The type that an expression is cast to as a whole, in either notation; nothing where it is no cast."""
    if argument and argument[0].text == "(" and closing(argument, 0) < len(argument) - 1:
        return argument[1 : closing(argument, 0)]
    if len(argument) > 1 and argument[0].text in ("reinterpret_cast", "static_cast", "const_cast"):
        return argument[2 : template_end(argument, 1) or 2]
    return []


def _std_name(tokens: Sequence[Token]) -> str | None:
    for index, token in enumerate(tokens[:-2]):
        if token.text == "std" and tokens[index + 1].text == "::":
            return tokens[index + 2].text
    return None


def _index_of(function: Function, head: Sequence[Token]) -> int:
    return next(i for i, token in enumerate(head) if token.text == function.name and token.place == function.place)


def _is_in(tokens: Sequence[Token], space: str) -> bool:
    return any(token.kind == "mark" and token.text == space for token in tokens)


def _text(tokens: Sequence[Token]) -> str:
    spelled = " ".join(f"__{token.text}__" if token.kind == "mark" else token.text for token in tokens)
    return re.sub(r" (?=[*&,<>)\]])|(?<=[<(\[]) ", "", spelled).replace(" :: ", "::")
