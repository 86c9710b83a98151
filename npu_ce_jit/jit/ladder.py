# SPDX-License-Identifier: Apache-2.0
"""The sets of flags with which the releases of bisheng compile a vector kernel and its launcher into one library.

Each rung is a form that vendor documents or projects show; none works on all releases, and no file says which one a
release takes, so a build tries them on a small kernel (`probe`) and keeps the first that works.

All of them compile and link in one command. Objects hold device images, and what registers those at load time is made
by the link, under options that differ between releases: the one command is documented for all.
"""

from pathlib import Path
from typing import NamedTuple


class Rung(NamedTuple):
    """One set of flags. `needs_cann_dirs`: this form of the driver adds no include directory or library by itself."""

    name: str
    flags: tuple[str, ...]
    needs_cann_dirs: bool


_ALL = ("-std=c++17", "-O3", "-fPIC", "-shared")
# What CANN's own build rules of 8.x pass for this front door.
_LLVM = tuple(
    word
    for option in (
        "-cce-aicore-stack-size=0x8000",
        "-cce-aicore-function-stack-size=0x8000",
        "-cce-aicore-record-overflow=true",
        "-cce-aicore-addr-transform",
        "-cce-aicore-dcci-insert-for-scalar=false",
    )
    for word in ("-mllvm", option)
)

# A kernel is declared `extern "C" __global__ NPU_CE_VECTOR __aicore__ void name(...)`: that, or the options of the old
# form, says that it needs vector cores only. There is no rung for both kinds of cores (dav-c220): the macro with which
# a kernel then names one, KERNEL_TASK_TYPE_DEFAULT, says something to CANN's own build of operators only, and without
# it each block runs on a cube core and on two vector cores.
LADDER = (
    # 8.5 and later.
    Rung(
        "asc",
        ("-x", "asc", "--npu-arch=dav-2201", *_ALL, "-DNPU_CE_VECTOR=__vector__"),
        needs_cann_dirs=False,
    ),
    # 8.0 to 8.3, as their manual has it. It wants the name of a chip, and takes from it the architecture that all chips
    # of A2 and A3 share: any of these names gives the same code. Asking for the real one would make a device context.
    Rung(
        "cce-soc",
        ("-xcce", "--cce-soc-version=Ascend910B1", "--cce-soc-core-type=VecCore", *_ALL, "--cce-auto-sync",
         "-DNPU_CE_VECTOR="),
        needs_cann_dirs=True,
    ),
    # The architecture by its own name, where a release refuses that of the chip.
    Rung(
        "cce-vec",
        ("-xcce", "--cce-aicore-arch=dav-c220-vec", *_ALL, "--cce-auto-sync", *_LLVM,
         "-DNPU_CE_VECTOR="),
        needs_cann_dirs=True,
    ),
)  # fmt: skip

# Below CANN's home, {machine} as in x86_64: 8.x, then 9.x, where the first is a link that older packages lack.
_API_DIRS = ("compiler/tikcpp/tikcfw", "{machine}-linux/tikcpp/tikcfw", "{machine}-linux/asc/include")
_LIBRARIES = ("-lruntime", "-lascendcl")


class Command(NamedTuple):
    """bisheng's words before and after the sources."""

    before: tuple[str, ...]
    after: tuple[str, ...]


def command_of(rung: Rung, home: str, machine: str, more: tuple[str, ...] = ()) -> Command:
    """The rung's flags on this machine, with `more` behind them."""
    if not rung.needs_cann_dirs:
        return Command((*rung.flags, *more), ())
    api_dir = api_dir_of(home, machine)
    dirs = [Path(home, "include"), *([api_dir, api_dir / "impl", api_dir / "interface"] if api_dir else [])]
    includes = tuple(f"-I{path}" for path in dirs if path.is_dir())
    return Command((*rung.flags, *more, *includes), (f"-L{home}/lib64", *_LIBRARIES))


def api_dir_of(home: str, machine: str) -> Path | None:
    """Where Ascend C's headers are."""
    dirs = (Path(home, name.format(machine=machine)) for name in _API_DIRS)
    return next((path for path in dirs if (path / "kernel_operator.h").is_file()), None)
