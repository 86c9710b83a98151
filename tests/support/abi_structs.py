# SPDX-License-Identifier: Apache-2.0
"""The structs and enumerators of ascendc/abi/, parsed from its headers, so that Python need not repeat them."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from npu_ce_jit.jit.sources import Sources

ABI_DIR = Sources.installed().root_dir / "ascendc" / "abi"
HEADERS = ("problem.h", "forward.h", "backward.h")  # in order of dependence: fields have types of the headers before

_TYPES: dict[str, Any] = {
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
}


def _read() -> tuple[dict[str, Any], dict[str, int]]:
    text = "\n".join((ABI_DIR / name).read_text("utf-8") for name in HEADERS)
    text = re.sub(r"//.*", "", text)
    structs: dict[str, Any] = {}
    for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.DOTALL | re.MULTILINE):
        declarations = filter(None, (" ".join(line.split()) for line in body.split(";")))
        fields = [_field(declaration, {**_TYPES, **structs}) for declaration in declarations]
        structs[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    enums = " ".join(re.findall(r"^enum \w+ : int32_t \{(.*?)\};", text, re.DOTALL | re.MULTILINE))
    enumerators = {name: int(value) for name, value in re.findall(r"(\w+) = (\d+)", enums)}
    return structs, enumerators


def _field(declaration: str, types: dict[str, Any]) -> tuple[str, Any]:
    match = re.fullmatch(r"(?:const )?(\w+)(\*?) (\w+)", declaration)
    if match is None or (not match[2] and match[1] not in types):
        raise ValueError(f"expected a field of {', '.join(types)} or a pointer, got {declaration!r}")
    return match[3], ctypes.c_void_p if match[2] else types[match[1]]


STRUCTS, ENUMERATORS = _read()
