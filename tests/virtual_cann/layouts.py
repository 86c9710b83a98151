# SPDX-License-Identifier: Apache-2.0
"""A CANN tree of each generation: the files and links that programs look for in a CANN installation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from virtual_cann.compiler.tree import DESCRIPTION, LIBCLANG

VIRTUAL_CANN = Path(__file__).resolve().parent

_MACHINE = os.uname().machine
_MACHINE_DIR = f"{_MACHINE}-linux"

# torch_npu is linked with those of the first line; the others are in link commands of Ascend C projects.
_LIBRARY_NAMES = (
    "hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel", "runtime",
    "opapi", "nnopbase", "platform", "tiling_api", "register", "graph_base", "c_sec", "profapi", "unified_dlog", "mmpa",
    "ascend_dump", "error_manager",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    generation: float
    version: str
    compiler_dir: str  # the real directory; those of bin_dirs and links lead to it
    links: dict[str, str]  # path in the tree -> its target, also in the tree
    files: dict[str, str]
    api_dir: str  # kernel_operator.h
    bin_dirs: tuple[str, ...]  # what set_env.sh puts on PATH
    driver_include_dirs: tuple[str, ...] = ()  # that the compiler adds by itself
    lacks: tuple[str, ...] = ()  # functions that this generation's runtime does not have


# The field names are those of the real packages' files; the values are ours.
_OF_CANN_8_3 = Layout(
    generation=8.3,
    version="8.3.RC1",
    compiler_dir="compiler/ccec_compiler/bin",
    links={
        "tools/ccec_compiler": "compiler/ccec_compiler",
        f"{_MACHINE_DIR}/ccec_compiler": "compiler/ccec_compiler",
        "compiler/ccec_compiler/bin/ccec": "compiler/ccec_compiler/bin/bisheng",
        f"{_MACHINE_DIR}/include": "include",
        f"{_MACHINE_DIR}/lib64": "lib64",
        f"{_MACHINE_DIR}/tikcpp": "compiler/tikcpp",
    },
    files={
        "version.cfg": (
            "# version: 1.0\n"
            "runtime_running_version=[8.3.0.1.200:8.3.RC1]\n"
            "compiler_running_version=[8.3.0.1.200:8.3.RC1]\n"
            "toolkit_running_version=[8.3.0.1.200:8.3.RC1]\n"
            "toolkit_installed_version=[8.3.0.1.200:8.3.RC1]\n"
        ),
        "compiler/version.info": "Version=8.3.0.1.200\nversion_dir=8.3.RC1\n",
        "runtime/version.info": "Version=8.3.0.1.200\nversion_dir=8.3.RC1\n",
        "opp/version.info": "Version=8.3.0.1.200\nversion_dir=8.3.RC1\n",
        f"{_MACHINE_DIR}/ascend_toolkit_install.info": (
            f"package_name=Ascend-cann-toolkit\nversion=8.3.RC1\ninnerversion={{content}}\narch={_MACHINE}\nos=linux\n"
        ),
        "include/version/cann_version.h": "#pragma once\n#define CANN_VERSION_STR \"8.3.RC1\"\n",
    },
    api_dir="compiler/tikcpp/tikcfw",
    bin_dirs=("bin", "compiler/ccec_compiler/bin", "tools/ccec_compiler/bin"),
    lacks=(
        "aclrtGetDeviceResLimit", "aclrtSetDeviceResLimit", "aclrtResetDeviceResLimit",
        "aclrtGetStreamResLimit", "aclrtSetStreamResLimit", "aclrtResetStreamResLimit",
        "aclrtUseStreamResInCurrentThread", "aclrtUnuseStreamResInCurrentThread", "aclrtGetResInCurrentThread",
    ),
)  # fmt: skip


def _of_devkit(generation: float, version: str) -> Layout:
    """From 8.5 on, packages lie side by side, and asc-devkit has the headers of Ascend C."""
    return Layout(
        generation=generation,
        version=version,
        compiler_dir=f"{_MACHINE_DIR}/ccec_compiler/bin",
        links={
            "tools/bisheng_compiler": f"{_MACHINE_DIR}/ccec_compiler",
            "tools/ccec_compiler": f"{_MACHINE_DIR}/ccec_compiler",
            "bin/bisheng": f"{_MACHINE_DIR}/ccec_compiler/bin/bisheng",
            f"{_MACHINE_DIR}/tikcpp/tikcfw": f"{_MACHINE_DIR}/asc/include",
            f"{_MACHINE_DIR}/include": "include",
            f"{_MACHINE_DIR}/lib64": "lib64",
            "compiler/tikcpp": f"{_MACHINE_DIR}/tikcpp",
            "compiler/asc": f"{_MACHINE_DIR}/asc",
            "asc": f"{_MACHINE_DIR}/asc",
            "compiler/version.info": "share/info/asc-devkit/version.info",
        },
        files={
            "share/info/asc-devkit/version.info": f"Version={version}\nversion_dir=cann\n",
            "runtime/version.info": f"Version={version}\nversion_dir=cann\n",
            "opp/version.info": f"Version={version}\nversion_dir=cann\n",
            f"{_MACHINE_DIR}/ascend_toolkit_install.info": (
                f"package_name=Ascend-cann-toolkit\nversion={version}\ninnerversion={{content}}\narch={_MACHINE}\nos=linux\n"
            ),
            "include/version/asc_devkit_version.h": (
                f"#pragma once\n#define ASC_DEVKIT_VERSION_STR \"{version}\"\n#define ASC_DEVKIT_MAJOR {version[0]}\n"
            ),
        },
        api_dir=f"{_MACHINE_DIR}/asc/include",
        bin_dirs=("bin", f"{_MACHINE_DIR}/ccec_compiler/bin"),
        driver_include_dirs=(f"{_MACHINE_DIR}/asc/include", "include"),
    )  # fmt: skip


LAYOUTS = {layout.generation: layout for layout in (_OF_CANN_8_3, _of_devkit(8.5, "8.5.0"), _of_devkit(9.1, "9.1.0"))}


def build_tree(root: Path, layout: Layout, library: Path, acl_headers: Path, libclang: Path, content: str) -> None:
    """Fills the empty directory `root`. Nothing in it has an absolute path to it, so it may be renamed afterwards."""
    _link(root / layout.compiler_dir / "bisheng", VIRTUAL_CANN / "bin" / "bisheng")
    # A file with an #include, not a link: its own includes are then resolved beside the real header.
    for name in ("kernel_operator.h", "interface/kernel_operator.h", "impl/kernel_operator.h"):
        _write(root / layout.api_dir / name, f'#pragma once\n#include "{VIRTUAL_CANN}/include/kernel_operator.h"\n')
    _link(root / layout.api_dir / "ascendc", VIRTUAL_CANN / "include" / "ascendc")
    _link(root / LIBCLANG, libclang)
    _link(root / "include" / "acl", acl_headers)
    _link(root / "lib64" / "libascendcl.so", library)
    for name in _LIBRARY_NAMES:
        _link(root / "lib64" / f"lib{name}.so", Path("libascendcl.so"))
    for name, text in layout.files.items():
        # The content's hash stands for a real toolkit's build number, so that caches keyed by it tell trees apart.
        _write(root / name, text.replace("{content}", content))
    for name, target in layout.links.items():
        _link(root / name, Path(os.path.relpath(root / target, (root / name).parent)))
    for name in (*layout.bin_dirs, "opp", "runtime", "compiler"):
        (root / name).mkdir(parents=True, exist_ok=True)
    _write(root / "set_env.sh", _set_env(layout))
    description = {
        "generation": layout.generation, "version": layout.version, "content": content,
        "include_dirs": layout.driver_include_dirs,
    }  # fmt: skip
    _write(root / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def tree_variables(root: Path, layout: Layout, callers: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment variables as set_env.sh leaves them."""
    before = {
        "LD_LIBRARY_PATH": [str(root / "lib64")],
        "PATH": [str(root / name) for name in layout.bin_dirs],
    }  # fmt: skip
    joined = {
        name: os.pathsep.join([*values, *([callers[name]] if callers.get(name) else [])])
        for name, values in before.items()
    }
    homes = {"ASCEND_HOME_PATH": root, "ASCEND_TOOLKIT_HOME": root, "ASCEND_OPP_PATH": root / "opp"}
    return {**callers, **joined, **{name: str(path) for name, path in homes.items()}}


def _set_env(layout: Layout) -> str:
    path = ":".join(f"$ASCEND_HOME_PATH/{name}" for name in layout.bin_dirs)
    return (
        'ASCEND_HOME_PATH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)\n'
        "export ASCEND_HOME_PATH ASCEND_TOOLKIT_HOME=$ASCEND_HOME_PATH ASCEND_OPP_PATH=$ASCEND_HOME_PATH/opp\n"
        "export LD_LIBRARY_PATH=$ASCEND_HOME_PATH/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n"
        f"export PATH={path}:$PATH\n"
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
