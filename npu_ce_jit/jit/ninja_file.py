# SPDX-License-Identifier: Apache-2.0
"""The text of build.ninja. Pure: nothing is read or written here."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence

from npu_ce_jit.errors import BuildError, ToolchainError
from npu_ce_jit.jit import flags
from npu_ce_jit.jit.sources import Sources

_NO_WRAP = 1 << 30  # Writer wraps at spaces, also at those inside quotes


def ninja_file(
    cxx: Sequence[str], cpu_isa: str, sources: Sources, include_dirs: Sequence[str], library_dirs: Sequence[str]
) -> str:
    """Objects and the library are relative to the directory that ninja runs in, sources absolute.

    A path goes through two readers, ninja (`$`) and the shell, so it is quoted for the shell and then escaped for
    ninja. Source paths begin with the variable `$root`: ninja does not split what a variable holds, and quotes `$in`
    for the shell by itself. Raises ToolchainError without the ninja package, BuildError for a path with a newline.
    """
    try:
        from ninja.ninja_syntax import Writer, escape
    except ImportError as error:
        raise ToolchainError(
            f"The Python package ninja cannot be imported ({error}).", "Run: pip install ninja"
        ) from error

    root = str(sources.root_dir)
    for path in (root, *cxx, *include_dirs, *library_dirs):
        if "\n" in path:
            raise BuildError(f"The path {path!r} holds a newline, which no ninja file can.", "Move it.")

    def shell(*words: str) -> str:
        return str(escape(shlex.join(words)))

    text = io.StringIO()
    writer = Writer(text, width=_NO_WRAP)  # type: ignore[arg-type]  # any text stream serves
    writer.variable("ninja_required_version", "1.3")
    writer.variable("root", escape(root))
    writer.variable("cxx", shell(*cxx))
    includes = ["-I" + f"{root}/csrc", *(word for path in include_dirs for word in ("-isystem", path))]
    writer.variable("cflags", shell(*flags.COMPILE, *includes))
    writer.variable("ldflags", shell(*flags.LINK, *(f"-L{path}" for path in library_dirs)))
    writer.variable("libs", shell(*flags.LIBRARIES))
    writer.newline()
    writer.rule("compile", "$cxx $cflags $isa -c $in -o $out", description="compile $in")
    writer.rule("link", "$cxx $ldflags $in $libs -o $out", description="link $out")
    writer.newline()
    # The kernels take longest, and last, one would run alone.
    kernels_first = sorted(sources.cpu_units, key=flags.is_kernel, reverse=True)
    objects = {unit: unit.removesuffix(".cpp") + ".o" for unit in kernels_first}
    for unit, object_file in objects.items():
        isa = shell(*flags.OF_ISA[cpu_isa]) if flags.is_kernel(unit) else ""
        writer.build([object_file], "compile", [f"$root/{unit}"], variables={"isa": isa} if isa else None)
    writer.build([flags.LIBRARY_FILE], "link", list(objects.values()))
    writer.default(flags.LIBRARY_FILE)
    return text.getvalue()
