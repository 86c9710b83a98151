# SPDX-License-Identifier: Apache-2.0
"""bisheng's command line: the options of all generations, less those that the given one refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtual_cann.compiler import refusals
from virtual_cann.compiler.refusals import Refusals

SOC_NAME = re.compile(r"Ascend910(B[1-4](C|-1)?|_93\d\d)")
_C220 = ("dav-c220", "dav-c220-vec")
ARCHITECTURES_OF_GENERATION = {8.3: _C220, 8.5: ("dav-2201", *_C220), 9.1: ("dav-2201", *_C220)}
_CXX17 = ("c++17", "gnu++17")
STANDARDS_OF_GENERATION = {8.3: _CXX17, 8.5: _CXX17, 9.1: (*_CXX17, "c++20", "gnu++20")}
# In 8.5: no public project passes --npu-arch beside -xcce.
REFUSED_BY_GENERATION = {
    8.3: frozenset({"asc", "xcce-npu-arch"}), 8.5: frozenset({"xcce-npu-arch"}), 9.1: frozenset[str](),
}  # fmt: skip

# bisheng's own names for Ascend C, in all generations; every other language is for the host.
_DEVICE_LANGUAGES = frozenset({"asc", "cce"})
_LANGUAGE_FLAGS = {
    "--asc-aicore-lang": "asc", "--cce-aicore-lang": "cce", "-xasc": "asc", "-xcce": "cce", "-xc++": "c++",
}  # fmt: skip
_HOST_SUFFIXES = (".cpp", ".cc", ".cxx", ".c")

# Options that take a value, in the same argument or in the next one, by their receiver.
_PREPROCESSOR_VALUES = ("-I", "-D", "-U", "-isystem", "-include", "-iquote")
_LINKER_VALUES = ("-L", "-l")
_LINKER_FLAGS = ("-pthread", "-static-libstdc++", "-static-libgcc", "-rdynamic")

# Options of the real bisheng that change nothing here.
_IGNORED = re.compile(
    r"--cce-auto-sync(=(on|off))?|--cce-auto-sync-log=.+|--cce-disable-asc-reserved-ubuf|--gcc-toolchain=.+"
    r"|-fPIC|-fpic|-w|-W(?!l,).*|-pipe|-v|-ffp-contract=\w+|-fdiagnostics-color(=\w+)?"
    r"|-ffile-prefix-map=.+|-fno-.+"
)
_LLVM_OPTION = re.compile(
    r"-?-(cce-aicore-(stack-size|function-stack-size)=\w+|cce-aicore-record-overflow=(true|false)"
    r"|cce-aicore-addr-transform|cce-aicore-dcci-insert-for-scalar=(true|false)|api-deps-filter)"
)
_NOT_MODELLED = {
    "--cce-aicore-only": "a device-only object cannot run on the host",
    "--aicore-only": "a device-only object cannot run on the host",
    "-dc": "relocatable device code is not modelled: keep a kernel and what it calls in one source",
    "-lib": "static libraries are not modelled: build with -shared",
    "--cce-build-static-lib": "static libraries are not modelled: build with -shared",
    "--enable-simt": "SIMT code is not modelled",
    "--run-mode": "the virtual CANN is a machine of its own: leave --run-mode out",
    "--sanitizer": "the virtual machine checks every access anyway: leave --sanitizer out",
}


class UsageError(Exception):
    """The command line is not one that the compiler takes."""


@dataclass(frozen=True)
class Source:
    path: str
    language: str  # asc, cce or c++


@dataclass
class Options:
    generation: float
    refusals: Refusals
    sources: list[Source] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    output: str | None = None
    compile_only: bool = False
    shared: bool = False
    fatobj_link: bool = False
    standard: str | None = None
    architecture: str | None = None
    npu_arch: bool = False  # whether it was given as --npu-arch
    soc: str | None = None
    core_type: str | None = None
    optimisation: str = "-O2"
    host_compiler: list[str] = field(default_factory=list)  # options that g++ gets unchanged
    preprocessor: list[str] = field(default_factory=list)
    linker: list[str] = field(default_factory=list)
    depfile: str | None = None
    depfile_options: list[str] = field(default_factory=list)
    system_dependencies: bool = True

    @property
    def device_languages(self) -> set[str]:
        return {source.language for source in self.device_sources}

    @property
    def device_sources(self) -> list[Source]:
        return [source for source in self.sources if source.language in _DEVICE_LANGUAGES]

    @property
    def adds_libraries(self) -> bool:
        """Whether the driver links the libraries that kernels need by itself, or the user has to name all of them."""
        cce = "cce" in self.device_languages or self.fatobj_link
        return not cce and "asc-dirs" not in self.refusals.forms

    @property
    def wants_depfile(self) -> bool:
        return self.depfile is not None


def parse(arguments: Sequence[str], generation: float, refused: str = "") -> Options:
    """`refused` is the value of VIRTUAL_CANN_REFUSES."""
    try:
        options = Options(generation, refusals.parse(refused, REFUSED_BY_GENERATION[generation]))
    except ValueError as error:
        raise UsageError(str(error)) from error
    language: str | None = None
    named_languages: set[str] = set()
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-x", *_LANGUAGE_FLAGS):
            language = _LANGUAGE_FLAGS.get(argument) or _value(argument, "-x", rest)
            if language not in ("asc", "cce", "c++", "c"):
                raise UsageError(f"language not recognized: '{language}'")
            if language == "asc" and "asc" in options.refusals.forms:
                raise UsageError("language not recognized: 'asc': this compiler knows -xcce only")
            named_languages.add(language)
        elif not argument.startswith("-"):
            _add_input(options, argument, language)
        else:
            _parse_option(options, argument, rest)
    if {"asc", "cce"} <= named_languages:
        raise UsageError("'-x asc' and '-xcce' are two ways to say the same: give one of them")
    _check(options)
    return options


def _add_input(options: Options, path: str, language: str | None) -> None:
    suffix = Path(path).suffix
    if language is None and suffix == ".asc":
        if "asc" in options.refusals.forms:
            raise UsageError(f"'{path}': this compiler does not know .asc: use -xcce")
        language = "asc"
    if language is not None or suffix in _HOST_SUFFIXES:
        options.sources.append(Source(path, language or "c++"))
    else:
        options.objects.append(path)


def _parse_option(options: Options, argument: str, rest: Iterator[str]) -> None:  # noqa: C901  a table in the form of branches
    name = argument.split("=", 1)[0]
    if name in _NOT_MODELLED:
        raise UsageError(f"'{argument}': {_NOT_MODELLED[name]}")
    if argument == "-c":
        options.compile_only = True
    elif argument in ("-shared", "--shared"):
        options.shared = True
    elif argument == "--cce-fatobj-link" and "fatobj-link" not in options.refusals.forms:
        options.fatobj_link = True
    elif argument.startswith("-o"):
        options.output = _value(argument, "-o", rest)
    elif argument.startswith(("-std=", "--std=")):
        options.standard = argument.split("=", 1)[1]
    elif name == "--npu-arch":
        options.architecture, options.npu_arch = _assigned(argument), True
    elif name == "--cce-aicore-arch":
        options.architecture = _assigned(argument)
    elif name == "--cce-soc-version" and "soc" not in options.refusals.forms:
        options.soc = _assigned(argument)
    elif name == "--cce-soc-core-type":
        options.core_type = _assigned(argument)
    elif argument == "-mllvm":
        _check_llvm_option(_value(argument, "-mllvm", rest))
    elif re.fullmatch(r"-O\w*", argument):
        if argument not in ("-O0", "-O2", "-O3"):
            raise UsageError(f"'{argument}': the compiler documents -O0, -O2 and -O3")
        options.optimisation = "-O0" if argument == "-O0" else "-O2"
    elif re.fullmatch(r"-g\w*(-\d)?|-fvisibility(=|-inlines-)\w+", argument):
        options.host_compiler.append(argument)
    elif argument in ("-MD", "-MMD"):
        options.depfile = options.depfile or ""
        options.system_dependencies = argument == "-MD"
    elif argument.startswith("-MF"):
        options.depfile = _value(argument, "-MF", rest)
    elif argument.startswith(("-MT", "-MQ")):
        options.depfile_options += [argument[:3], _value(argument, argument[:3], rest)]
    elif argument == "-MP":
        options.depfile_options.append(argument)
    elif argument.startswith("-Wl,") or argument in _LINKER_FLAGS:
        options.linker.append(argument)
    elif prefix := next((flag for flag in _LINKER_VALUES if argument.startswith(flag)), None):
        options.linker.append(prefix + _value(argument, prefix, rest))
    elif prefix := next((flag for flag in _PREPROCESSOR_VALUES if argument.startswith(flag)), None):
        options.preprocessor += [prefix, _value(argument, prefix, rest)]
    elif not _IGNORED.fullmatch(argument):
        raise UsageError(f"unknown argument: '{argument}'")


def _check(options: Options) -> None:
    _check_files(options)
    _check_standard(options)
    _check_target(options)


def _check_files(options: Options) -> None:
    if not options.sources and not options.objects:
        raise UsageError("no input files")
    for path in [*(source.path for source in options.sources), *options.objects]:
        if not Path(path).is_file():
            raise UsageError(f"no such file or directory: '{path}'")
    if options.compile_only and options.output and len(options.sources) > 1:
        raise UsageError("cannot specify -o when generating multiple output files")
    if options.depfile and len(options.sources) > 1:
        raise UsageError("-MF names one file, and there are several sources")
    if options.fatobj_link and (options.sources or options.compile_only):
        raise UsageError("--cce-fatobj-link links objects of -xcce: compile each source with -c before")
    _check_sizes(options)


def _check_sizes(options: Options) -> None:
    sources = options.device_sources
    sizes = [Path(source.path).stat().st_size for source in sources]
    exceeded = options.refusals.exceeded
    problems = [exceeded("units", len(sources)), *(exceeded("bytes", size) for size in sizes)]
    if problem := next(filter(None, problems), None):
        raise UsageError(problem)
    if "several-units" in options.refusals.forms and len(sources) > 1 and not options.compile_only:
        raise UsageError(f"{len(sources)} device sources in one command that links: this compiler takes one")


def _check_target(options: Options) -> None:
    languages = options.device_languages
    if "asc" in languages and options.architecture is None:
        raise UsageError("--npu-arch is missing: Ascend C needs it, as in --npu-arch=dav-2201")
    if "cce" in languages and options.architecture is None and options.soc is None:
        raise UsageError(
            "-xcce needs --cce-soc-version=Ascend910B3 and --cce-soc-core-type=VecCore, or --cce-aicore-arch"
        )
    if "asc" in languages and (options.soc or options.core_type):
        raise UsageError("--cce-soc-version and --cce-soc-core-type go with -xcce; '-x asc' takes --npu-arch")
    if "asc" not in languages and options.npu_arch and "xcce-npu-arch" in options.refusals.forms:
        raise UsageError("unknown argument: '--npu-arch': beside -xcce this compiler knows --cce-aicore-arch")
    known = list(ARCHITECTURES_OF_GENERATION[options.generation])
    if "vec" in options.refusals.forms:
        known.remove("dav-c220-vec")
    if options.architecture is not None and options.architecture not in known:
        raise UsageError(f"architecture '{options.architecture}' is not one that is modelled: {', '.join(known)}")
    if options.soc is not None:
        _check_soc(options.soc, options.core_type)


def _check_standard(options: Options) -> None:
    known = STANDARDS_OF_GENERATION[options.generation]
    if options.standard is None:
        if "cce" in options.device_languages:
            raise UsageError("-xcce needs -std=c++17")
    elif options.standard not in known:
        raise UsageError(f"invalid value '{options.standard}' in '-std=': this compiler takes {', '.join(known)}")


def _check_soc(soc: str, core_type: str | None) -> None:
    if not SOC_NAME.fullmatch(soc):
        raise UsageError(
            f"--cce-soc-version={soc}: name the chip in full, as aclrtGetSocName does: Ascend910B3, Ascend910_9382"
        )
    if core_type is None:
        raise UsageError("--cce-soc-version needs --cce-soc-core-type=VecCore beside it")
    if core_type != "VecCore":
        raise UsageError(f"--cce-soc-core-type={core_type}: the virtual CANN has vector cores only: VecCore")


def _check_llvm_option(option: str) -> None:
    if not _LLVM_OPTION.fullmatch(option):
        raise UsageError(f"unknown argument: '-mllvm {option}'")


def _value(argument: str, flag: str, rest: Iterator[str]) -> str:
    value = argument[len(flag) :] or next(rest, None)
    if value is None:
        raise UsageError(f"argument to '{flag}' is missing")
    return value


def _assigned(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not equals or not value:
        raise UsageError(f"argument to '{name}' is missing: {name}=...")
    return value
