# SPDX-License-Identifier: Apache-2.0
"""The names that device code may not use, and their replacements."""

from __future__ import annotations

import re

INSTEAD_OF_KEYWORD = {
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

# The parts of std:: that generate no code.
_COMPILE_TIME_STD = re.compile(
    r"(is|has|add|remove|make|enable|conjunction|disjunction|negation)(_\w+)?|(conditional|decay|common_type|underlying_type)(_t)?"
    r"|integral_constant|bool_constant|true_type|false_type|numeric_limits|void_t|declval"
    r"|(make_)?(index|integer)_sequence\w*|u?int(_least|_fast)?\d+_t|u?intptr_t|size_t|ptrdiff_t|nullptr_t|byte"
)

# printf is not here: AscendC has one, also in the global namespace.
_INSTEAD_OF_LIBC = {
    re.compile(
        r"(exp|exp2|expm1|log|log2|log10|log1p|pow|sqrt|cbrt|hypot|a?sin|a?cos|a?tan|atan2|sinh|cosh|tanh|erfc?|fabs|floor|ceil"
        r"|round|trunc|l?rint|nearbyint|lround|fmod|fmin|fmax|fma|ldexp|frexp|copysign|isnan|isinf|isfinite)f?"
    ): "the vector functions of AscendC (Exp, Ln, Sqrt, ...) on a LocalTensor",
    re.compile(r"mem(cpy|move|set|cmp)"): "AscendC::DataCopy or AscendC::Duplicate",
    re.compile(r"malloc|calloc|realloc|free|alloca"): "TPipe::InitBuffer",
    re.compile(
        r"l?abs|abort|exit|rand|srand|time|clock|puts|putchar|v?fprintf|v?sn?printf|vprintf|str(len|n?cmp|n?cpy)"
    ): "code of your own that is __aicore__",
}


def is_compile_time(std_name: str) -> bool:
    return bool(_COMPILE_TIME_STD.fullmatch(std_name))


def instead_of_libc(name: str) -> str | None:
    """The replacement for a function of the C library; None if the name is no such function."""
    return next((instead for names, instead in _INSTEAD_OF_LIBC.items() if names.fullmatch(name)), None)
