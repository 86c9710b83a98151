# SPDX-License-Identifier: Apache-2.0
"""Environments with any version of torch, of 1 to 2 GB each.

Package indexes have most versions of torch only for CUDA, with 3 GB of NVIDIA's libraries. Here torch is installed
without these; stand-in libraries whose functions all fail take their place, which is enough on a CPU.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nvidia_stand_ins
from locations import CHECKOUT

# Requirements of torch that it does not need on a CPU.
_FOR_CUDA = re.compile(r"(nvidia|cuda|triton)\b")

_REQUIREMENTS = """
import importlib.metadata, json, re
print(json.dumps([*importlib.metadata.requires("torch"), *importlib.metadata.requires("npu_ce_jit")]))
"""


# The largest environment so far, and the wheels that pip downloads for it and deletes afterwards.
_INSTALLED_BYTES, _FETCHED_BYTES = 2_300_000_000, 1_100_000_000


class UnavailableError(Exception):
    """Something is missing; the text says what, and how to mend it."""


class NoRoomError(UnavailableError):
    """The disk has too little space."""


class Environment(NamedTuple):
    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def variables(self, callers: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The caller's environment variables, with those that activating the environment sets."""
        path = os.pathsep.join([str(self.directory / "bin"), callers.get("PATH", os.defpath)])
        return {**callers, "PATH": path, "VIRTUAL_ENV": str(self.directory)}


def environment(cache: Path, torch: str, python: str, interpreters: Sequence[str] = ()) -> Environment:
    """An environment with this torch, this checkout's package and the tests' requirements; made on first use, whole or
    not at all.

    `python` is a version such as 3.11, which is looked for in `interpreters` and then on PATH. Raises UnavailableError.
    """
    made = _environment(cache, torch, python)
    interpreter = _interpreter(python, interpreters)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache, made):
            mark = made.directory / "stand_ins"  # holds the nvidia_stand_ins.py that made the environment
            content = Path(nvidia_stand_ins.__file__).read_text("utf-8")
            is_made = mark.exists() and mark.read_text("utf-8") == content
            if not is_made:
                shutil.rmtree(made.directory, ignore_errors=True)
                _require_room(cache)
            try:
                if not is_made:
                    _run(interpreter, "-m", "venv", str(made.directory))
                    _install(made, "--no-deps", f"torch=={torch}")
                    (torch_lib,) = made.directory.glob("lib/python3*/site-packages/torch/lib")
                    nvidia_stand_ins.make(torch_lib)
                # These each time: the checkout and its requirements may have changed.
                _install(made, "--no-deps", "-e", str(CHECKOUT))
                _install(made, *_plain_requirements(made))
                mark.write_text(content, "utf-8")
            except BaseException:
                if not is_made:
                    shutil.rmtree(made.directory, ignore_errors=True)
                raise
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"{error}\n{made.directory} could not be made") from error
    return made


def remove(cache: Path, torch: str, python: str) -> None:
    """Removes the environment; it is made again when it is requested."""
    made = _environment(cache, torch, python)
    with _locked(cache, made):
        shutil.rmtree(made.directory)


def _environment(cache: Path, torch: str, python: str) -> Environment:
    return Environment(cache / f"torch-{torch}-python-{python}")


def _require_room(cache: Path) -> None:
    """Checked in advance: on a full disk pip fails midway, and other programs have no space either."""
    fetched = Path(tempfile.gettempdir())
    needed = {fetched: _FETCHED_BYTES, cache: _INSTALLED_BYTES}
    if fetched.stat().st_dev == cache.stat().st_dev:
        needed[cache] += _FETCHED_BYTES
    for directory, size in needed.items():
        free = shutil.disk_usage(directory).free
        if free < size:
            raise NoRoomError(f"{free / 1e9:.1f} GB free in {directory}, {size / 1e9:.1f} needed")


def _interpreter(version: str, given: Sequence[str]) -> str:
    """An interpreter of `version`. Its version is checked: a file of that name may be a shim without such a version."""
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for program in (*given, *(os.path.join(directory, f"python{version}") for directory in directories)):
        if os.access(program, os.X_OK):
            code = "import sys; print('%d.%d' % sys.version_info[:2])"
            said = subprocess.run([program, "-I", "-c", code], check=False, capture_output=True, text=True)
            if said.stdout.strip() == version:
                return program
    raise UnavailableError(f"no Python {version} on PATH: install it, or name one with --python FILE")


def _plain_requirements(made: Environment) -> list[str]:
    """The requirements of torch, the package and its tests, without torch itself and what is for CUDA alone."""
    said = subprocess.check_output([made.python, "-I", "-c", _REQUIREMENTS], text=True)
    chosen = []
    for requirement in json.loads(said):
        name, _, marker = requirement.partition(";")
        is_of_tests = re.search(r"extra == ['\"]test['\"]", marker) is not None
        if (is_of_tests or "extra ==" not in marker) and not re.match(r"torch\b", name) and not _FOR_CUDA.match(name):
            chosen.append(name.strip() if is_of_tests else requirement)
    return chosen


def _install(made: Environment, *what: str) -> None:
    _run(
        str(made.python),
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-cache-dir",
        *what,
    )


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise UnavailableError(f"{done.stdout}\n{' '.join(command)} failed")


@contextmanager
def _locked(cache: Path, made: Environment) -> Iterator[None]:
    with (cache / f"{made.directory.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
