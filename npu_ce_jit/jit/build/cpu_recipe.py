# SPDX-License-Identifier: Apache-2.0
"""How a target is built, as ninja needs it: commands, steps, and the environment that they run in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain import flags
from npu_ce_jit.jit.toolchain.discovery import Toolchain


class Step(NamedTuple):
    """One command. `sources` are names of `Sources`, `objects` and `output` files in the build directory."""

    rule: str
    output: str
    sources: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    after: tuple[str, ...] = ()  # files in the build directory that must be there first
    words: Mapping[str, Sequence[str]] = {}  # variables of this step only


class Recipe(NamedTuple):
    """`words` are the variables that the commands of `rules` use, each a list of the compiler's arguments.

    `steps` begin with the longest, since a long one at the end would run alone.
    """

    libraries: tuple[str, ...]  # the first is the one to load; it finds the others beside itself
    words: Mapping[str, Sequence[str]]
    rules: Mapping[str, str]
    steps: tuple[Step, ...]
    environment: Mapping[str, str] = {}
    facts: Mapping[str, Any] = {}  # what the manifest tells of this recipe
    tools: Mapping[str, Sequence[str]] = {}  # programs whose --version goes into the manifest

    @property
    def compiles(self) -> int:
        """How many compilers could run at once."""
        return sum(bool(step.sources) for step in self.steps)


CXX_RULES = {"compile": "$cxx $cflags $isa -c $in -o $out", "link": "$cxx $ldflags $in $libs -o $out"}


def cpu_recipe(toolchain: Toolchain, sources: Sources) -> Recipe:
    """Raises ToolchainError for what is missing."""
    cpu_isa = toolchain.cpu_isa.require()
    include_dirs, library_dirs = torch_dirs(toolchain)
    compile_flags = (*flags.COMPILE, *sources.define_flags)
    kernels_first = sorted(sources.units(".cpp"), key=flags.is_kernel, reverse=True)
    compiles = [
        Step("compile", object_of(unit), (unit,), words={"isa": flags.OF_ISA[cpu_isa]} if flags.is_kernel(unit) else {})
        for unit in kernels_first
    ]
    link = Step("link", flags.CPU_LIBRARY, objects=tuple(step.output for step in compiles))
    return Recipe(
        libraries=(flags.CPU_LIBRARY,),
        words={
            "cxx": toolchain.cxx_command,
            "cflags": (*compile_flags, f"-I{sources.root_dir}/csrc", *system_includes(include_dirs)),
            "ldflags": (*flags.LINK, *(f"-L{path}" for path in library_dirs)),
            "libs": flags.LIBRARIES,
        },
        rules=CXX_RULES,
        steps=(*compiles, link),
        facts={"flags": [*compile_flags, *flags.OF_ISA[cpu_isa], *flags.LINK, *flags.LIBRARIES]},
        tools={"compiler": toolchain.cxx_command},
    )


def object_of(unit: str) -> str:
    return unit.removesuffix(".cpp") + ".o"


def system_includes(dirs: Sequence[str]) -> list[str]:
    """As system directories: warnings about third-party headers are suppressed."""
    return [word for path in dirs for word in ("-isystem", path)]


def torch_dirs(toolchain: Toolchain) -> tuple[list[str], list[str]]:
    """torch's directories of headers, and of libraries."""
    try:
        # torch's own answer. Its module imports setuptools, so only a build asks it.
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError:  # no setuptools, which torch does not require everywhere
        torch_dir = toolchain.torch_dir.require()
        includes = [f"{torch_dir}/include", f"{torch_dir}/include/torch/csrc/api/include"]
        return includes, [f"{torch_dir}/lib", *flags.LIBRARY_DIRS]
    return list(include_paths()), [*library_paths(), *flags.LIBRARY_DIRS]
