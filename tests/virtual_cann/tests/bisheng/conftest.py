# SPDX-License-Identifier: Apache-2.0
"""Fixtures that run the compiler as a program, and in this process."""

from __future__ import annotations

import subprocess

import pytest
from trees import ASC, ENVIRONMENT, build_trees
from virtual_cann.compiler import driver
from virtual_cann.layouts import LAYOUTS


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    return build_trees(tmp_path_factory.mktemp("cann"))


@pytest.fixture
def bisheng(trees, tmp_path):
    """Runs the compiler of a generation, in a temporary directory."""

    def run(*arguments: str, generation: float = 9.1, refuses: str = "") -> subprocess.CompletedProcess:
        program = trees[generation] / LAYOUTS[generation].compiler_dir / "bisheng"
        env = {**ENVIRONMENT, "VIRTUAL_CANN_REFUSES": refuses}
        return subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True, env=env)

    return run


@pytest.fixture
def compile_text(trees, tmp_path, monkeypatch, capfd):
    """Compiles a text as k.asc in this process, which takes a third of the time."""
    monkeypatch.chdir(tmp_path)

    def compile_(text: str, *flags: str, generation: float = 9.1) -> subprocess.CompletedProcess:
        (tmp_path / "k.asc").write_text(text)
        arguments = [*ASC, "-isystem", str(trees[9.1].parent / "api"), *(flags or ["-c"]), "k.asc", "-o", "k.o"]
        code = driver.main([str(trees[generation] / "bin" / "bisheng"), *arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return compile_
