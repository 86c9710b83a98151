# SPDX-License-Identifier: Apache-2.0
"""The structs that Python reads from the headers of ascendc/abi/ have the C++ compiler's layout, field by field."""

from __future__ import annotations

import ctypes
import re
import subprocess

import pytest
from abi_structs import ABI_DIR, ENUMERATORS, HEADERS, STRUCTS


def test_every_struct_and_every_field_lies_where_the_compiler_puts_it() -> None:
    lines = ["#include <cstddef>", *(f'#include "{ABI_DIR / name}"' for name in HEADERS)]
    for name, struct in STRUCTS.items():
        lines.append(f'static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "{name}");')
        for field, _ in struct._fields_:
            at, size = getattr(struct, field).offset, getattr(struct, field).size
            lines.append(f'static_assert(offsetof({name}, {field}) == {at}, "{name}.{field}");')
            lines.append(f'static_assert(sizeof({name}::{field}) == {size}, "{name}.{field}");')
    lines += [f'static_assert({name} == {value}, "{name}");' for name, value in ENUMERATORS.items()]
    command = ["g++", "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # All structs are here. A missing last field could only be hidden by padding.
    text = "".join((ABI_DIR / name).read_text("utf-8") for name in HEADERS)
    assert list(STRUCTS) == re.findall(r"^struct (\w+)", text, re.MULTILINE)
    assert {"CeProblem", "CeForwardPlan", "CeBackwardPlan"} <= {*STRUCTS}


@pytest.mark.parametrize("declaration", ["double x", "uint32_t x[2]", "bool x"])
def test_a_field_that_it_does_not_know_is_refused(declaration: str) -> None:
    from abi_structs import _TYPES, _field

    with pytest.raises(ValueError, match=re.escape(repr(declaration))):
        _field(declaration, _TYPES)
