# SPDX-License-Identifier: Apache-2.0
"""The text of build.ninja. Pure: nothing is read or written here."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path

from npu_ce_jit.errors import BuildError, ToolchainError
from npu_ce_jit.jit.build.cpu_recipe import Recipe

_NO_WRAP = 1 << 30  # Writer wraps at spaces, also at those inside quotes


def ninja_file(recipe: Recipe, root_dir: Path) -> str:
    """Objects and libraries are relative to the directory that ninja runs in, sources absolute.

    A path goes through two readers, ninja (`$`) and the shell, so it is quoted for the shell and then escaped for
    ninja. Source paths begin with the variable `$root`: ninja does not split what a variable holds, and quotes `$in`
    for the shell by itself. Raises ToolchainError without the ninja package, BuildError for a path with a newline.
    """
    try:
        from ninja.ninja_syntax import Writer, escape
    except ImportError as error:
        raise ToolchainError(
            f"The Python package ninja cannot be imported ({error}).", "Run: pip install ninja"
        ) from error

    for word in (str(root_dir), *(word for words in recipe.words.values() for word in words)):
        if "\n" in word:
            raise BuildError(f"The path {word!r} holds a newline, which no ninja file can.", "Move it.")

    def shell(words: Sequence[str]) -> str:
        return str(escape(shlex.join(words)))

    text = io.StringIO()
    writer = Writer(text, width=_NO_WRAP)  # type: ignore[arg-type]  # any text stream serves
    writer.variable("ninja_required_version", "1.3")
    writer.variable("root", escape(str(root_dir)))
    for name, words in recipe.words.items():
        writer.variable(name, shell(words))
    writer.newline()
    for name, command in recipe.rules.items():
        writer.rule(name, command, description=f"{name} $out")
    writer.newline()
    for step in recipe.steps:
        writer.build(
            [step.output],
            step.rule,
            [*(f"$root/{source}" for source in step.sources), *step.objects],
            implicit=list(step.after) or None,
            variables={name: shell(words) for name, words in step.words.items() if words} or None,
        )
    writer.default(list(recipe.libraries))
    return text.getvalue()
