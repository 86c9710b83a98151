# SPDX-License-Identifier: Apache-2.0
"""The outcome of each set of flags, and the error where none works."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.bisheng import hints
from npu_ce_jit.jit.bisheng.flag_sets import Compiler, FlagSet
from npu_ce_jit.jit.toolchain.compiler_output import telling_lines


class Reached(IntEnum):
    """How far a set of flags got before it failed."""

    PROBE = 0
    KERNELS = 1
    SELF_CHECK = 2


class Attempt(NamedTuple):
    """One try of a set of flags; `output` is empty where it works."""

    flag_set: FlagSet
    more: tuple[str, ...] = ()  # flags in addition to the set's
    command: str = ""  # ready to paste; empty for a set of flags that was rejected
    output: str = ""
    reached: Reached = Reached.PROBE
    is_the_last: bool = False  # the failure is not of the flags: any other set would fail as well

    @property
    def works(self) -> bool:
        return not self.output

    @property
    def name(self) -> str:
        return " ".join((self.flag_set.name, *self.more))

    @property
    def verdict(self) -> str:
        if self.works:
            return "works"
        line = next(iter(telling_lines(self.output)))
        return f"takes the probe and not the kernels: {line}" if self.reached is Reached.KERNELS else line

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}"


def none_works(attempts: Sequence[Attempt], compiler: Compiler, log_file: Path) -> BuildError:
    """The error, with a line for each way in which sets of flags failed, and a hint for the set that got furthest."""
    names_of: dict[str, list[str]] = {}
    for attempt in attempts:
        names_of.setdefault(attempt.verdict, []).append(attempt.name)
    furthest = max(reversed(attempts), key=lambda attempt: attempt.reached)
    tried = len({attempt.flag_set for attempt in attempts})
    return BuildError(
        f"bisheng makes kernels that work with none of the {tried} sets of flags that were tried.",
        hints.of(furthest.output, compiler),
        furthest.command,
        tuple(f"{', '.join(names)}: {verdict}" for verdict, names in names_of.items()),
        str(log_file),
    )


def is_the_sources_fault(attempts: Sequence[Attempt], root_dir: Path) -> bool:
    """Whether a third set of flags has failed with the same errors in our sources: then those are wrong, not the flags.

    Two sets are no proof: the first two differ only in their directories and libraries.
    """
    where = re.compile(rf"^{re.escape(str(root_dir))}/\S+:\d+: (?:fatal )?error: .*", re.MULTILINE)
    found = [errors for attempt in attempts if (errors := set(where.findall(attempt.output)))]
    return bool(found) and found.count(found[-1]) == 3
