# SPDX-License-Identifier: Apache-2.0
"""Environments with any version of torch, in 1 to 2 GB each.

Indexes of packages have most versions of torch for CUDA only, with 3 GB of NVIDIA's libraries. Here torch is installed
without them: for the CPU, libraries whose functions all fail stand in for them.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nvidia_stand_ins
from locations import CHECKOUT

# What torch's metadata ask for beside what it needs on a CPU.
_FOR_CUDA = re.compile(r"(nvidia|cuda|triton)\b")

_REQUIREMENTS = """
import importlib.metadata, json, re
print(json.dumps([*importlib.metadata.requires("torch"), *importlib.metadata.requires("npu_ce_jit")]))
"""


class UnavailableError(Exception):
    """Something is missing; the text says what, and what to do."""


class Environment(NamedTuple):
    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def variables(self, callers: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The caller's environment variables with what the environment's activation sets."""
        path = os.pathsep.join([str(self.directory / "bin"), callers.get("PATH", os.defpath)])
        return {**callers, "PATH": path, "VIRTUAL_ENV": str(self.directory)}


def environment(cache: Path, torch: str, python: str, interpreters: Sequence[str] = ()) -> Environment:
    """With this torch, this checkout's package and what its tests need; made on first use.

    `python` is a version, as 3.11; `interpreters` are searched for it before PATH.
    """
    made = Environment(cache / f"torch-{torch}-python-{python}")
    interpreter = _interpreter(python, interpreters)
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{made.directory.name}.lock"):
        mark = made.directory / "stand_ins"  # of which content
        content = Path(nvidia_stand_ins.__file__).read_text("utf-8")
        if not mark.exists() or mark.read_text("utf-8") != content:
            shutil.rmtree(made.directory, ignore_errors=True)
            subprocess.run([interpreter, "-m", "venv", made.directory], check=True)
            _install(made, "--no-deps", f"torch=={torch}")
            (torch_lib,) = made.directory.glob("lib/python3*/site-packages/torch/lib")
            nvidia_stand_ins.make(torch_lib)
            mark.write_text(content, "utf-8")
        # These each time: the checkout, and what it asks for, may have changed.
        _install(made, "--no-deps", "-e", str(CHECKOUT))
        _install(made, *_plain_requirements(made))
    return made


def _interpreter(version: str, given: Sequence[str]) -> str:
    """That of `version`: a file of this name may be a shim which has no such version."""
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for program in (*given, *(os.path.join(directory, f"python{version}") for directory in directories)):
        if os.access(program, os.X_OK):
            code = "import sys; print('%d.%d' % sys.version_info[:2])"
            said = subprocess.run([program, "-I", "-c", code], check=False, capture_output=True, text=True)
            if said.stdout.strip() == version:
                return program
    raise UnavailableError(f"no Python {version} on PATH: install it, or name one with --python FILE")


def _plain_requirements(made: Environment) -> list[str]:
    """Of torch, of the package and of its tests, but for torch itself and what is for CUDA alone."""
    said = subprocess.check_output([made.python, "-I", "-c", _REQUIREMENTS], text=True)
    chosen = []
    for requirement in json.loads(said):
        name, _, marker = requirement.partition(";")
        is_of_tests = re.search(r"extra == ['\"]test['\"]", marker) is not None
        if (is_of_tests or "extra ==" not in marker) and not re.match(r"torch\b", name) and not _FOR_CUDA.match(name):
            chosen.append(name.strip() if is_of_tests else requirement)
    return chosen


def _install(made: Environment, *what: str) -> None:
    command = [made.python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise UnavailableError(f"{done.stdout}\npip could not install {' '.join(what)}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
