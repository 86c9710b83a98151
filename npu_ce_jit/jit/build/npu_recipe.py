# SPDX-License-Identifier: Apache-2.0
"""How the NPU libraries are built: the kernels by bisheng, the glue by the C++ compiler."""

from __future__ import annotations

import os
import platform
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from npu_ce_jit.jit.bisheng.attempts import Attempt, Reached, is_the_sources_fault, none_works
from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS, Command, Compiler
from npu_ce_jit.jit.bisheng.probe import Probe, open_words
from npu_ce_jit.jit.build.cpu_recipe import CXX_RULES, Recipe, Step, object_of, system_includes, torch_dirs
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain import flags
from npu_ce_jit.jit.toolchain.compiler_output import BUILD_LOG, Failure, open_log, was_killed
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings

# Each set of flags has commands of its own. A library may link and still lack a symbol, so it is opened as well.
_BISHENG_RULES = {"bisheng": "$words", "bisheng_library": "$words && $open $out"}


def npu_recipes(
    settings: Settings,
    toolchain: Toolchain,
    sources: Sources,
    directory: Path,
    key_digest: str,
    rejected: Iterable[tuple[Mapping[str, Any], str]] = (),
) -> Generator[Recipe, Failure, None]:
    """Yields a recipe for each set of flags that compiles the probe; is sent its failure, and yields the next. Sources
    without C++ units have no glue, and make the library of kernels alone.

    Skips the sets of flags in the manifests of `rejected`, each of which has a verdict beside it. Ends where no other
    set of flags could help. Raises ToolchainError for what is missing, OSError where the disk of `directory` is full,
    and BuildError, with a line for each way in which sets of flags failed, where none works.
    """
    compiler = Compiler(toolchain.bisheng.require(), toolchain.cann_home.require(), platform.machine())
    environment = cann_environment(settings, compiler)
    probe = Probe(
        compiler, toolchain.cxx_command, directory,
        settings.child_environment(LC_ALL="C", TMPDIR=str(directory), **environment),
    )  # fmt: skip
    # The glue depends on the kernels' library by name, and the dynamic linker takes any library of that name that the
    # process has open. So each build of the kernels has a name of its own.
    suffix, units = f"-{key_digest}.so", sources.units(".asc")
    more = sources.define_flags
    verdicts = {manifest["bisheng_flags"]: verdict for manifest, verdict in rejected}
    attempts: list[Attempt] = []
    for flag_set in FLAG_SETS:
        if flag_set.name in verdicts:
            verdict = Attempt(flag_set, output=f"error: {verdicts[flag_set.name]}", reached=Reached.SELF_CHECK)
            _note(verdict, attempts, directory)
            continue
        for attempt in probe.attempts(flag_set):
            if not attempt.works:
                _note(attempt, attempts, directory)
                continue
            library = f"libnpu_ce_kernels-{flag_set.name}{suffix}"
            commands = compiler.commands(flag_set, sources.root_dir, units, library, (*attempt.more, *more))
            recipe = _recipe(toolchain, sources, compiler, commands, environment)
            failure = yield recipe._replace(
                facts={
                    "bisheng_flags": flag_set.name,
                    "bisheng_flags_tried": list(map(str, (*attempts, attempt))),
                    "flags": [*flag_set.flags, *attempt.more, *recipe.facts["flags"]],
                }
            )
            output = "\n".join(failure.lines)
            if was_killed(output) or not {command.output for command in commands} & set(failure.outputs):
                return
            attempts.append(attempt._replace(command=failure.command, output=output, reached=Reached.KERNELS))
            if is_the_sources_fault(attempts, sources.root_dir):
                return
        if attempts[-1].is_the_last:
            break
    raise none_works(attempts, compiler, directory / BUILD_LOG)


def _note(attempt: Attempt, attempts: list[Attempt], directory: Path) -> None:
    """Records a failed attempt, also in the log, beside ninja's output."""
    attempts.append(attempt)
    with open_log(directory) as log:
        log.write(f"{attempt.name}: {attempt.command}\n{attempt.output}\n\n".encode("utf-8", "surrogateescape"))


def _recipe(
    toolchain: Toolchain,
    sources: Sources,
    compiler: Compiler,
    commands: tuple[Command, ...],
    environment: Mapping[str, str],
) -> Recipe:
    """The kernels by these commands, and the glue."""
    torch_includes, torch_libraries = torch_dirs(toolchain)
    torch_npu = toolchain.torch_npu_dir.require()
    includes = (f"{torch_npu}/include", f"{torch_npu}/include/third_party/acl/inc", *torch_includes)
    libraries = (".", f"{torch_npu}/lib", *torch_libraries, f"{compiler.home}/lib64")
    root, compile_flags = sources.root_dir, (*flags.NPU_COMPILE, *sources.define_flags)

    kernels = commands[-1].output
    by_bisheng = [
        Step(
            "bisheng_library" if command.output == kernels else "bisheng",
            command.output, command.sources, command.objects, words={"words": command.words},
        )
        for command in commands
    ]  # fmt: skip
    by_cxx = [Step("compile", object_of(unit), (unit,)) for unit in sources.units(".cpp")]
    objects = tuple(step.output for step in by_cxx)
    link = [Step("link", flags.NPU_LIBRARY, objects=objects, after=(kernels,))] if by_cxx else []
    return Recipe(
        libraries=(*(step.output for step in link), kernels),
        words={
            "open": open_words(),
            "cxx": toolchain.cxx_command,
            "cflags": (*compile_flags, f"-I{root}/csrc", *system_includes(includes)),
            "ldflags": (*flags.NPU_LINK, *(f"-L{path}" for path in libraries)),
            "libs": (f"-l{kernels.removeprefix('lib').removesuffix('.so')}", *flags.NPU_LIBRARIES),
        },
        rules={**_BISHENG_RULES, **CXX_RULES},
        steps=(*by_bisheng, *by_cxx, *link),
        environment=environment,
        facts={"flags": [*compile_flags, *flags.NPU_LINK, *flags.NPU_LIBRARIES]},
        tools={"bisheng": [compiler.program], "compiler": toolchain.cxx_command},
    )


def cann_environment(settings: Settings, compiler: Compiler) -> dict[str, str]:
    """What set_env.sh would set, for a user who has not sourced it.

    bisheng starts ld.lld by name, so PATH has its directory. devlib comes last: its libraries stand in for the driver's
    where there is no driver.
    """
    home = compiler.home
    devlib = f"{home}/{compiler.machine}-linux/devlib"
    return {
        "ASCEND_HOME_PATH": home,
        "PATH": os.pathsep.join(filter(None, [os.path.dirname(compiler.program), settings.path])),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [f"{home}/lib64", settings.library_path, devlib])),
    }
