# SPDX-License-Identifier: Apache-2.0
"""The forms of command with which releases of bisheng make a library of vector kernels and their launchers.

Each set of flags is a form that vendor documents or projects show. None works with all releases, and no file says which
one a release takes. So a build tries them in this order, each on two small kernels (`probe`) and then on all kernels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple


class FlagSet(NamedTuple):
    """One form. `needs_cann_dirs`: the driver then adds no include directory or library by itself.

    "one command" compiles and links all units; "two steps" compiles each by itself, and bisheng links them as well,
    since it adds the code that registers the device code; "one unit" has one unit include all others.
    """

    name: str
    flags: tuple[str, ...]
    needs_cann_dirs: bool
    form: Literal["one command", "two steps", "one unit"] = "one command"

    def __str__(self) -> str:
        """Everything in it that changes the library: a part of the cache key."""
        return " ".join((f"{self.form}:", *self.flags, *(_LIBRARIES if self.needs_cann_dirs else ())))


# Projects whose kernels ran on an NPU in these modes use -O2. Only CANN's build rules for operator packages use -O3;
# which is faster has to be measured on an NPU.
_ALL = ("-std=c++17", "-O2", "-fPIC")
_ASC = ("-x", "asc", "--npu-arch=dav-2201", *_ALL, "-DNPU_CE_VECTOR=__vector__")
# CANN's own build rules pass these in the old mode (`-xcce`); the driver of the new mode (`-x asc`) adds them itself.
# Without TILING_KEY_VAR every unit defines g_tilingKey, and several cannot be linked; no kernel here reads it.
# L2_CACHE_HINT is left out: the hint adds an offset that is 0 unless the loader of the binary sets it, and the offset's
# variable is one more symbol that a release may lack. So with these sets of flags SetL2CacheHint does nothing, which
# costs time and changes no result.
_CCE = (
    *_ALL,
    "--cce-auto-sync",
    *(
        word
        for option in (
            "-cce-aicore-stack-size=0x8000",
            "-cce-aicore-function-stack-size=0x8000",
            "-cce-aicore-record-overflow=true",
            "-cce-aicore-addr-transform",
            "-cce-aicore-dcci-insert-for-scalar=false",
        )
        for word in ("-mllvm", option)
    ),
    "-DTILING_KEY_VAR=0",
)
_CCE_VEC = ("-xcce", "--cce-aicore-arch=dav-c220-vec", *_CCE, "-DNPU_CE_VECTOR=")

# A kernel is declared `extern "C" __global__ NPU_CE_VECTOR __aicore__ void name(...)`: the macro, or the options of the
# old form, say that it needs vector cores only. No set of flags is for both kinds of cores (dav-c220): a kernel then
# names its kind by the macro KERNEL_TASK_TYPE_DEFAULT, which only CANN's own build of operators reads, and without it
# each block runs on a cube core and on two vector cores.
FLAG_SETS = (
    # 8.5 and later.
    FlagSet("asc", _ASC, needs_cann_dirs=False),
    # The same, where the driver does not find its own headers or libraries.
    FlagSet("asc-dirs", _ASC, needs_cann_dirs=True),
    # The old mode of 9.x, which takes the architecture by its new name too. That name is for both kinds of cores, so
    # the kernels say `__vector__`: a compiler without that keyword refuses it, and does not compile for both kinds.
    FlagSet(
        "cce-npu-arch",
        ("-xcce", "--npu-arch=dav-2201", *_CCE, "-DNPU_CE_VECTOR=__vector__"),
        needs_cann_dirs=True,
    ),
    # 8.0 to 8.3, as in their manual. The option takes the name of a chip, for its architecture, which all chips of A2
    # and A3 share: any of their names gives the same code. Asking for the real name would make a device context.
    FlagSet(
        "cce-soc",
        ("-xcce", "--cce-soc-version=Ascend910B1", "--cce-soc-core-type=VecCore", *_CCE, "-DNPU_CE_VECTOR="),
        needs_cann_dirs=True,
    ),
    # The architecture by its own name, where a release refuses the chip's.
    FlagSet("cce-vec", _CCE_VEC, needs_cann_dirs=True),
    # What public projects with several units do in this mode.
    FlagSet("cce-two-steps", _CCE_VEC, needs_cann_dirs=True, form="two steps"),
    # One unit, which needs no linking: no name is defined in two of the units that it includes.
    FlagSet("cce-one-unit", _CCE_VEC, needs_cann_dirs=True, form="one unit"),
)

# Below CANN's home: where Ascend C is in 9.x (8.x may have a link of that name), and in 8.x.
_API_HOMES = ("{machine}-linux", "compiler")
# Below those, the include directories of CANN's build rules for operator packages: of 9.x and 8.5, then of 8.x, whose
# place 9.x keeps for headers generated at packaging. Headers include each other by file name alone, so one directory is
# not enough.
_API_PARTS = ("", "/basic_api", "/basic_api/reg_compute", "/adv_api", "/c_api", "/utils")
_API_DIRS = (
    "asc",
    *(f"asc/include{part}" for part in _API_PARTS),
    *(f"asc/impl{part}" for part in _API_PARTS),
    *(f"tikcpp/tikcfw{part}" for part in ("", "/interface", "/impl")),
)
_LIBRARIES = ("-lruntime", "-lascendcl", "-lstdc++")


class Command(NamedTuple):
    """One run of bisheng: makes `output` from `sources`, which are units, and `objects`, outputs of earlier runs."""

    words: tuple[str, ...]
    output: str
    sources: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()


class Compiler(NamedTuple):
    """bisheng on this machine, and the CANN whose headers and libraries it is given."""

    program: str
    home: str
    machine: str

    def commands(
        self, flag_set: FlagSet, root_dir: Path, units: Sequence[str], library: str, more: Sequence[str] = ()
    ) -> tuple[Command, ...]:
        """The commands that make a library of these units below `root_dir`; `more` are flags for every command."""
        units = tuple(units)
        includes, libraries = self._cann_dirs() if flag_set.needs_cann_dirs else ((), ())
        before, after = (self.program, *flag_set.flags, *more, *includes), ("-o", library, *libraries)
        paths = [str(root_dir / unit) for unit in units]
        if flag_set.form == "two steps":
            compiles = [
                Command((*before, "-c", path, "-o", f"{unit}.o"), f"{unit}.o", (unit,))
                for unit, path in zip(units, paths, strict=True)
            ]
            objects = tuple(command.output for command in compiles)
            link = (self.program, "--cce-fatobj-link", "-fPIC", "-shared", *more, *objects, *after)
            return *compiles, Command(link, library, objects=objects)
        if flag_set.form == "one unit":
            *others, last = paths
            paths = [*(word for path in others for word in ("-include", path)), last]
        return (Command((*before, "-shared", *paths, *after), library, units),)

    def api_dirs(self) -> list[Path]:
        """The directories of Ascend C's headers; empty where there are none."""
        for name in _API_HOMES:
            home = Path(self.home, name.format(machine=self.machine))
            dirs = [path for path in (home / part for part in _API_DIRS) if path.is_dir()]
            if any((path / "kernel_operator.h").is_file() for path in dirs):
                return dirs
        return []

    def _cann_dirs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The flags for the headers, and those for the libraries."""
        dirs = [Path(self.home, "include"), *self.api_dirs()]
        return tuple(f"-I{path}" for path in dirs if path.is_dir()), (f"-L{self.home}/lib64", *_LIBRARIES)
