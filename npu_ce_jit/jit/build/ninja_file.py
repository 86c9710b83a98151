# SPDX-License-Identifier: Apache-2.0
"""The text of build.ninja. Pure: nothing is read or written here, and the ninja package is not needed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.build.cpu_recipe import Recipe, Step


def ninja_file(recipe: Recipe, root_dir: Path) -> str:
    """Objects and libraries are relative to the directory that ninja runs in, sources absolute.

    A path goes through two readers, ninja (`$`) and the shell, so it is quoted for the shell and then escaped for
    ninja. Source paths begin with the variable `$root`: ninja does not split what a variable holds, and quotes `$in`
    for the shell by itself. Raises BuildError for a path with a newline.
    """
    for word in (str(root_dir), *(word for words in recipe.words.values() for word in words)):
        if "\n" in word:
            raise BuildError(f"The path {word!r} holds a newline, which no ninja file can.", "Move it.")
    return "\n".join(_lines(recipe, root_dir)) + "\n"


def _lines(recipe: Recipe, root_dir: Path) -> Iterator[str]:
    yield "ninja_required_version = 1.3"
    yield f"root = {_escaped(str(root_dir))}"
    yield from (f"{name} = {_shell(words)}" for name, words in recipe.words.items())
    for name, command in recipe.rules.items():
        yield from ("", f"rule {name}", f"  command = {command}", f"  description = {name} $out")
    yield ""
    for step in recipe.steps:
        yield _build_line(step)
        yield from (f"  {name} = {_shell(words)}" for name, words in step.words.items() if words)
    yield f"default {' '.join(map(_path, recipe.libraries))}"


def _build_line(step: Step) -> str:
    inputs = [*(f"$root/{_path(source)}" for source in step.sources), *map(_path, step.objects)]
    after = ["|", *map(_path, step.after)] if step.after else []
    return f"build {_path(step.output)}: {' '.join((step.rule, *inputs, *after))}"


def _shell(words: Sequence[str]) -> str:
    return _escaped(shlex.join(words))


def _escaped(text: str) -> str:
    return text.replace("$", "$$")


def _path(name: str) -> str:
    return _escaped(name).replace(" ", "$ ").replace(":", "$:")
