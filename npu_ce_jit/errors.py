# SPDX-License-Identifier: Apache-2.0
"""The errors of this package. Each is one sentence of fact and one of action, and survives pickle."""

from __future__ import annotations


class NpuCeJitError(RuntimeError):
    """Base of every error that this package raises by itself.

    Args:
        fact: What was expected and what came instead.
        hint: What to do next, naming the command or the variable.
    """

    def __init__(self, fact: str, hint: str = "") -> None:
        super().__init__(fact, hint)
        self.fact = fact
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.fact} {self.hint}".rstrip()


class SettingsError(NpuCeJitError):
    """An environment variable has an invalid value, or a name of this package that nothing reads."""


class ToolchainError(NpuCeJitError):
    """Something that a build needs is not on this machine."""


class LoadError(NpuCeJitError):
    """The dynamic linker refused a library, or found no such function in it; the fact holds dlerror's text."""


class SelfCheckError(NpuCeJitError):
    """A library was built and loads, but does not compute what it should; the fact holds the numbers."""


class FakeNpuError(NpuCeJitError):
    """The fake npu cannot be registered in this process, or an operation needs a real one."""


class PatchError(NpuCeJitError):
    """A framework, or an object of one, is not of the form that a patch knows; nothing was exchanged."""


class BuildError(NpuCeJitError):
    """The build did not give a library.

    Args:
        fact: What was expected and what came instead.
        hint: What to do next.
        command: The command that failed, ready to paste; empty where no command ran.
        first_lines: The first lines in which the compiler says what is wrong, at most 20.
        log_path: The whole output, kept in the cache; empty where no log could be kept.
    """

    def __init__(
        self, fact: str, hint: str = "", command: str = "", first_lines: tuple[str, ...] = (), log_path: str = ""
    ) -> None:
        super().__init__(fact, hint)
        self.args = (fact, hint, command, first_lines, log_path)  # what pickle hands back to __init__
        self.command = command
        self.first_lines = first_lines
        self.log_path = log_path

    def __str__(self) -> str:
        parts = [self.fact, *(f"    {line}" for line in self.first_lines)]
        if self.command:
            parts.append(f"command: {self.command}")
        if self.log_path:
            parts.append(f"log: {self.log_path}")
        if self.hint:
            parts.append(self.hint)
        return "\n".join(parts)
