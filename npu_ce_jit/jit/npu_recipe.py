# SPDX-License-Identifier: Apache-2.0
"""How the NPU libraries are built: the kernels by bisheng, the glue by the C++ compiler."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from npu_ce_jit.jit import flags
from npu_ce_jit.jit.probe import Probe
from npu_ce_jit.jit.recipe import CXX_RULES, Recipe, Step, object_of, system_includes, torch_dirs
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain import Toolchain
from npu_ce_jit.settings import Settings

_BISHENG_RULE = "$bisheng $before $in -o $out $after"


def npu_recipe(
    settings: Settings,
    toolchain: Toolchain,
    sources: Sources,
    directory: Path,
    key_digest: str,
    rejected: Iterable[tuple[Mapping[str, Any], str]] = (),
) -> Recipe:
    """Without the flags of manifests that were `rejected`, each with its verdict. Sources without units of C++ have no
    glue, and make the library of kernels alone.

    The glue needs the kernels by name, and the linker serves that with what the process has open under the same name.
    So each set of kernels has a name of its own.

    Raises ToolchainError for what is missing, BuildError where bisheng compiles nothing that works.
    """
    bisheng, home = toolchain.bisheng.require(), toolchain.cann_home.require()
    environment = cann_environment(settings, bisheng, home)
    probe = Probe(
        bisheng, home, toolchain.cxx_command, directory,
        settings.child_environment(LC_ALL="C", TMPDIR=str(directory), **environment),
        {manifest["rung"]: verdict for manifest, verdict in rejected},
    )  # fmt: skip
    command, attempts = probe.first_that_works()
    torch_includes, torch_libraries = torch_dirs(toolchain)
    torch_npu = toolchain.torch_npu_dir.require()
    includes = (f"{torch_npu}/include", f"{torch_npu}/include/third_party/acl/inc", *torch_includes)
    libraries = (".", f"{torch_npu}/lib", *torch_libraries, f"{home}/lib64")
    root, compile_flags = sources.root_dir, (*flags.NPU_COMPILE, *sources.define_flags)

    name = f"npu_ce_kernels-{attempts[-1].rung.name}-{key_digest}"
    kernels = Step("bisheng", f"lib{name}.so", sources.units(".asc"))
    compiles = [Step("compile", object_of(unit), (unit,)) for unit in sources.units(".cpp")]
    objects = tuple(step.output for step in compiles)
    link = [Step("link", flags.NPU_LIBRARY, objects=objects, after=(kernels.output,))] if compiles else []
    return Recipe(
        libraries=(*(step.output for step in link), kernels.output),
        words={
            "bisheng": [bisheng],
            "before": (*command.before, *sources.define_flags, f"-I{root}/ascendc"),
            "after": command.after,
            "cxx": toolchain.cxx_command,
            "cflags": (*compile_flags, f"-I{root}/csrc", f"-I{root}/ascendc", *system_includes(includes)),
            "ldflags": (*flags.NPU_LINK, *(f"-L{path}" for path in libraries)),
            "libs": (f"-l{name}", *flags.NPU_LIBRARIES),
        },
        rules={"bisheng": _BISHENG_RULE, **CXX_RULES},
        steps=(kernels, *compiles, *link),
        environment=environment,
        facts={
            "rung": attempts[-1].rung.name,
            "rungs": list(map(str, attempts)),
            "flags": [*command.before, *compile_flags, *flags.NPU_LINK, *flags.NPU_LIBRARIES],
        },
        tools={"bisheng": [bisheng], "compiler": toolchain.cxx_command},
    )


def cann_environment(settings: Settings, bisheng: str, home: str) -> dict[str, str]:
    """What set_env.sh would set, for a user who has not sourced it.

    bisheng starts ld.lld by name. devlib comes last: its libraries stand in for the driver's where there is no driver.
    """
    devlib = f"{home}/{platform.machine()}-linux/devlib"
    return {
        "ASCEND_HOME_PATH": home,
        "PATH": os.pathsep.join(filter(None, [os.path.dirname(bisheng), settings.path])),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [f"{home}/lib64", settings.library_path, devlib])),
    }
