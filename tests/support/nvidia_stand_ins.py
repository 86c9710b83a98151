# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for NVIDIA's libraries, for a torch built for CUDA: they define each function that torch needs, and all
fail.

`import torch` then works, everything on the CPU does, and torch.cuda.is_available() is False.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Name prefixes of NVIDIA's libraries and functions; torch's own libraries have other names.
_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
_FUNCTION = re.compile(r"cu|nv|nccl|__cuda")

# Functions that describe an error: they return the text, or write its address.
_TELLS = re.compile(r"\w*(Error|Status|Result)(String|Name)")
_WRITES_THE_TEXT = re.compile(r"cu(GetError|pti)\w+")

# 100 is cudaErrorNoDevice; in the other libraries it is an error too.
_FAILS = "int {}(void) {{ return 100; }}\n"
_TEXT = '"a stand-in for a library of NVIDIA, in which nothing works"'
_RETURNS_TEXT = f"const char* {{}}(void) {{{{ return {_TEXT}; }}}}\n"
_WRITES_TEXT = f"int {{}}(int error, const char** text) {{{{ *text = {_TEXT}; return 0; }}}}\n"


def make(torch_lib: Path) -> list[str]:
    """Writes the libraries that torch's own need into their directory, where they look for them; returns the names."""
    own = sorted(torch_lib.glob("*.so*"))
    needed = {name for library in own for name in _needed(library)} - {library.name for library in own}
    symbols = {symbol for library in own for symbol in _undefined(library)}
    versions = {version: file for library in own for file, version in _versions(library) if file in needed}
    unversioned = {name for name, version in symbols if not version and _FUNCTION.match(name)}
    for file in needed:
        by_version = {version: {name for name, of in symbols if of == version} for version in versions}
        by_version = {version: names for version, names in by_version.items() if versions[version] == file}
        _write(torch_lib / file, unversioned, by_version)
    return sorted(needed)


def _needed(library: Path) -> Iterator[str]:
    names = re.findall(r"\(NEEDED\).*\[(.*)\]", _output("readelf", "-dW", library))
    yield from (name for name in names if _LIBRARY.match(name))


def _undefined(library: Path) -> Iterator[tuple[str, str]]:
    """The undefined symbols and their versions, "" for none."""
    for line in _output("nm", "-D", "--undefined-only", library).splitlines():
        name, _, version = line.split()[-1].partition("@")
        yield name, version


def _versions(library: Path) -> Iterator[tuple[str, str]]:
    """The versions that the library requires, with the file of each."""
    file = ""
    for line in _output("readelf", "-VW", library).splitlines():
        if match := re.search(r"Version: \d+\s+File: (\S+)", line):
            file = match[1]
        elif match := re.search(r"Name: (\S+)\s+Flags", line):
            yield file, match[1]


def _write(file: Path, unversioned: set[str], by_version: dict[str, set[str]]) -> None:
    names = sorted(unversioned.union(*by_version.values()))
    code = "".join(_body(name).format(name) for name in names)
    script = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(of_it))} }};\n"
        for version, of_it in by_version.items()
    )
    source, map_ = file.with_name(f"{file.name}.c"), file.with_name(f"{file.name}.map")
    source.write_text(code, "utf-8")
    map_.write_text(script, "utf-8")
    options = [f"-Wl,-soname,{file.name}", *([f"-Wl,--version-script={map_}"] if script else [])]
    subprocess.run(["gcc", "-shared", "-fPIC", "-nostdlib", *options, "-o", file, source], check=True)
    source.unlink()
    map_.unlink()


def _body(name: str) -> str:
    if not _TELLS.fullmatch(name):
        return _FAILS
    return _WRITES_TEXT if _WRITES_THE_TEXT.fullmatch(name) else _RETURNS_TEXT


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
