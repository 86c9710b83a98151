# SPDX-License-Identifier: Apache-2.0
"""The environment variables: their names, meanings, defaults and checks. Nothing else reads the environment."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

from npu_ce_jit.errors import SettingsError

BuildPolicy = Literal["eager", "lazy", "never"]

_PREFIX = "NPU_CE_JIT_"


class Variable:
    """One environment variable, and the field of `Settings` that holds it.

    `parse` raises ValueError or KeyError where the text is not what `expected` says.
    """

    def __init__(self, name: str, field: str, meaning: str, expected: str, parse: Callable[[str], Any]) -> None:
        self.name: Final = name
        self.field: Final = field
        self.meaning: Final = meaning
        self.expected: Final = expected
        self.parse: Final = parse

    @property
    def default(self) -> Any:
        """The value where the variable is not set; None where it has no default."""
        return Settings._field_defaults[self.field]


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        value = text.strip().lower()
        if value not in allowed:
            raise ValueError(text)
        return value

    return parse


def _flag(text: str) -> bool:
    return {"0": False, "1": True, "false": False, "true": True}[text.strip().lower()]


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _absolute_path(text: str) -> Path:
    # A relative path would name another directory in each working directory.
    path = Path(text)
    if not path.is_absolute() or "\n" in text:
        raise ValueError(text)
    return path


def _absolute_paths(text: str) -> tuple[Path, ...]:
    return tuple(_absolute_path(part) for part in text.split(os.pathsep) if part)


def _level(text: str) -> int:
    return {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[
        text.strip().lower()
    ]


_PATH = "an absolute path"
_SWITCH = "0 or 1"

VARIABLES: tuple[Variable, ...] = (
    Variable(
        "NPU_CE_JIT_BUILD", "build", "When to compile: at import, at the first call, or not at all.",
        "eager, lazy or never", _one_of("eager", "lazy", "never"),
    ),
    Variable("NPU_CE_JIT_CACHE_DIR", "cache_dir", "Where built libraries are kept.", _PATH, _absolute_path),
    Variable(
        "NPU_CE_JIT_PREBUILT_DIR", "prebuilt_dirs", "Caches that others have built, searched after one's own.",
        "absolute paths with colons between", _absolute_paths,
    ),
    Variable(
        "NPU_CE_JIT_CPU_ISA", "cpu_isa", "Vector instructions to build for, instead of the best this CPU has.",
        "avx512, avx2, neon or baseline", _one_of("avx512", "avx2", "neon", "baseline"),
    ),
    Variable(
        "NPU_CE_JIT_BISHENG", "bisheng", "CANN's compiler, instead of the one on PATH or in CANN's home.",
        _PATH, _absolute_path,
    ),
    Variable(
        "NPU_CE_JIT_LOCK_TIMEOUT", "lock_timeout", "Seconds to wait for another process's build before building too.",
        "a number of seconds, 0 or more", _seconds,
    ),
    Variable(
        "NPU_CE_JIT_LOG", "log_level", "The least level of message to print.", "debug, info, warning or error", _level,
    ),
    Variable(
        "NPU_CE_JIT_CHECK_TARGETS", "check_targets", "Whether an NPU call checks that every target is a class.",
        _SWITCH, _flag,
    ),
    Variable(
        "NPU_CE_JIT_HUGE_PAGES", "huge_pages", "Whether large CPU outputs ask for huge pages.",
        _SWITCH, _flag,
    ),
    Variable("CXX", "cxx", "The C++ compiler, instead of g++, clang++ or c++ of PATH.", "a command", str),
    Variable("MAX_JOBS", "max_jobs", "The most compilers to run at once.", "a whole number, 1 or more", _count),
    Variable("ASCEND_HOME_PATH", "ascend_home", "Where CANN is installed.", _PATH, _absolute_path),
    Variable(
        "ASCEND_TOOLKIT_HOME", "ascend_toolkit_home", "Where CANN is installed, if ASCEND_HOME_PATH is not set.",
        _PATH, _absolute_path,
    ),
    Variable(
        "ASCEND_OPP_PATH", "ascend_opp", "The opp directory of CANN, if neither of the two above is set.",
        _PATH, _absolute_path,
    ),
    Variable("LD_LIBRARY_PATH", "library_path", "Where libraries are looked for.", "directories", str),
    Variable("XDG_CACHE_HOME", "xdg_cache_home", "Where the user's caches are kept.", _PATH, _absolute_path),
    Variable("HOME", "home", "The user's home; the cache is in its .cache/npu_ce_jit.", _PATH, _absolute_path),
    Variable("TMPDIR", "tmp_dir", "Where the cache goes if no other place is usable.", _PATH, _absolute_path),
    Variable("PATH", "path", "Where programs are looked for.", "directories", str),
    Variable("TERM", "terminal", "What kind of terminal commands print to.", "the name of a terminal", str),
    Variable("NO_COLOR", "no_color", "That commands print without colours.", "any text", bool),
)  # fmt: skip
_NAMES = frozenset(variable.name for variable in VARIABLES)


# Value classes of this package are named tuples: immutable like a frozen dataclass, but defining one takes a fifth of
# the time (0.25 against 1.2 ms here), and a warm import defines ten. A class that is never copied or compared is plain.
# Their modules do without `from __future__ import annotations`, with which NamedTuple compiles each type from a string.
class Settings(NamedTuple):
    """The values of `VARIABLES`, a field each: the default where a variable is not set."""

    build: BuildPolicy = "eager"
    cache_dir: Path | None = None
    prebuilt_dirs: tuple[Path, ...] = ()
    cpu_isa: str | None = None
    bisheng: Path | None = None
    lock_timeout: float = 300.0
    log_level: int = logging.INFO
    check_targets: bool = False
    huge_pages: bool | None = None
    cxx: str | None = None
    max_jobs: int | None = None
    ascend_home: Path | None = None
    ascend_toolkit_home: Path | None = None
    ascend_opp: Path | None = None
    library_path: str = ""
    xdg_cache_home: Path | None = None
    home: Path | None = None
    tmp_dir: Path = Path("/tmp")  # noqa: S108  the store makes a private directory in it
    path: str = ""
    terminal: str = ""
    no_color: bool = False
    problems: tuple[SettingsError, ...] = ()
    environment: Mapping[str, str] = {}  # what a child process inherits

    @classmethod
    def from_env(cls, mapping: Mapping[str, str]) -> "Settings":
        """Reads the variables. A bad value counts as not set and is reported in `problems`; nothing is raised."""
        values: dict[str, Any] = {}
        problems: list[SettingsError] = []
        for variable in VARIABLES:
            text = mapping.get(variable.name, "")
            if not text:  # an empty variable is the shell's way to say "not set"
                continue
            try:
                values[variable.field] = variable.parse(text)
            except (ValueError, KeyError):
                problems.append(_bad_value(variable, text))
        problems += [_unknown_name(name) for name in sorted(mapping) if name.startswith(_PREFIX) and name not in _NAMES]
        return cls(**values, problems=tuple(problems), environment=dict(mapping))

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self._fields if name != "environment")
        return f"Settings({', '.join(shown)})"  # environments hold secrets

    @property
    def may_colour(self) -> bool:
        """Whether a command may colour what it prints on a terminal."""
        return not self.no_color and self.terminal not in ("dumb", "unknown")

    def child_environment(self, **overrides: str) -> dict[str, str]:
        """The environment for a child process: ours, with `overrides`."""
        return {**self.environment, **overrides}


def _bad_value(variable: Variable, text: str) -> SettingsError:
    default = "nothing" if variable.default is None else variable.default
    if variable.name == "NPU_CE_JIT_LOG":
        default = logging.getLevelName(cast(int, default)).lower()
    return SettingsError(
        f"{variable.name}: expected {variable.expected}, got {text!r}; the default ({default}) is used.",
        f"Set {variable.name} to {variable.expected}, or unset it.",
    )


def _unknown_name(name: str) -> SettingsError:
    import difflib  # only for a name that is wrong

    close = difflib.get_close_matches(name, [known for known in _NAMES if known.startswith(_PREFIX)], n=1, cutoff=0)
    return SettingsError(f"{name} is set, but no such variable is read.", f"Did you mean {close[0]}?")
