# SPDX-License-Identifier: Apache-2.0
"""A Python environment with torch_npu and libclang that also sees all packages of the caller's environment.

The caller's environment is left unchanged.
"""

from __future__ import annotations

import hashlib
import os
import re
import site
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from virtual_cann.cache import PreparationError, build_once

# The newest torch_npu that was tested, for each minor version of torch.
TORCH_NPU = {
    "2.7": "2.7.1.post11",
    "2.8": "2.8.0.post5",
    "2.9": "2.9.0.post9",
    "2.10": "2.10.0.post7",
    "2.11": "2.11.0.post3",
    "2.12": "2.12.0.post3",
    "2.13": "2.13.0",
    "2.14": "2.14.0",
}
TORCH = "2.13.0"  # for callers that have none

# The clang that the real bisheng is made from. pyproject.toml's extra `test` repeats the version; a test compares them.
LIBCLANG = "15.0.6.1"

MARK = "virtual_cann_environment"  # a file in each such environment, with the path of the caller's interpreter
_CHECKOUT = Path(__file__).resolve().parents[2]

_NEEDED = (
    "torch",
    "numpy",
    "pyyaml",
    "ninja",
    "filelock",
    "libclang",
)  # the environment is keyed by their versions: they decide what has to be installed

_PIP_THAT_SERVES_OTHERS = (22, 3)  # the first with --python, which installs into another environment

# Variables that must not reach pip, or that would make it install elsewhere.
_NOT_FOR_PIP = frozenset({"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"})


def callers_interpreter() -> str:
    """The interpreter whose packages are used: this one or, inside `run`, the one that `run` was started with."""
    mark = Path(sys.prefix, MARK)
    return mark.read_text("utf-8") if mark.exists() else sys.executable


def environment(cache: Path) -> Path:
    """The environment's directory for the running interpreter; the interpreter's own, if that is already inside one."""
    if Path(sys.prefix, MARK).exists():
        return Path(sys.prefix)
    installed = _installed()
    torch_npu = os.environ.get("VIRTUAL_CANN_TORCH_NPU") or torch_npu_for(installed.get("torch", TORCH))
    facts = [sys.prefix, sys.version, torch_npu, *_requirements(installed), *_added_directories(installed)]
    facts += [f"{name} {installed.get(name)}" for name in _NEEDED]
    facts.append(Path(__file__).read_text("utf-8"))  # this file says how it is made
    path = cache / "environments" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    what = f"installing torch_npu {torch_npu} for {sys.executable}"
    return build_once(path, what, lambda private: _build(private, path, installed, torch_npu))


def torch_npu_for(torch: str) -> str:
    """The torch_npu version for this version of torch."""
    minor = ".".join(torch.split(".")[:2])
    if minor not in TORCH_NPU:
        raise PreparationError(
            f"torch {torch} has no torch_npu that was tried: expected torch {', '.join(TORCH_NPU)}. "
            "Run this with the python of an environment that has one of them."
        )
    return TORCH_NPU[minor]


def libclang(environment: Path) -> Path:
    """The libclang.so of the environment or else of the caller."""
    directories = [*environment.glob("lib/python3*/site-packages"), *map(Path, sys.path)]
    found = next(
        (path for directory in directories if (path := directory / "clang/native/libclang.so").is_file()), None
    )
    if found is None:
        raise PreparationError(f"{environment} has no libclang: remove that directory and run again")
    return found


def _requirements(installed: Mapping[str, str]) -> list[str]:
    """What the environment needs beside torch_npu. pip takes the caller's packages as already installed."""
    needed = {"numpy": "", "pyyaml": "", "libclang": f"=={LIBCLANG}"}
    if "torch" not in installed:
        needed["torch"] = f"=={TORCH}"
    if "npu_ce_jit" not in installed and _is_checkout():
        needed |= {"ninja": "", "filelock": ""}
    return [f"{name}{version}" for name, version in needed.items()]


def _added_directories(installed: Mapping[str, str]) -> list[str]:
    """The directories in which the environment looks for packages beside its own."""
    checkout = [str(_CHECKOUT)] if "npu_ce_jit" not in installed and _is_checkout() else []
    return [*_package_directories(), *checkout]


def _is_checkout() -> bool:
    return (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "npu_ce_jit").is_dir()


def _installed() -> dict[str, str]:
    """The versions of the caller's packages, by name, from directory names: importlib.metadata takes 60 ms."""
    found: dict[str, str] = {}
    for directory in _package_directories():
        for entry in os.listdir(directory):
            match = re.fullmatch(r"(.+)-([^-]+)\.dist-info", entry)
            if match:
                found.setdefault(match[1].lower(), match[2])
    return found


def _build(private: Path, final: Path, installed: Mapping[str, str], torch_npu: str) -> None:
    import venv

    own_pip = tuple(map(int, re.findall(r"\d+", installed.get("pip", "0"))[:2])) < _PIP_THAT_SERVES_OTHERS
    try:
        venv.create(private, symlinks=True, with_pip=own_pip)
    except subprocess.CalledProcessError as error:
        raise PreparationError(
            f"{sys.executable} has neither pip nor ensurepip: install Debian's python3-venv, or python3 -m pip"
        ) from error
    python = private / "bin" / "python"
    packages = Path(subprocess.check_output(
        [python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip())  # fmt: skip
    # site.addsitedir, because it also reads the .pth files of that directory, on which editable installs depend.
    lines = [f"import site; site.addsitedir({directory!r})\n" for directory in _added_directories(installed)]
    (packages / "callers_packages.pth").write_text("".join(lines), "utf-8")
    pip = [python, "-I", "-m", "pip"] if own_pip else [sys.executable, "-m", "pip", "--python", str(python)]
    install([*map(str, pip)], _requirements(installed))
    # --no-deps: most torch_npu wheels require one build of torch (2.10.0+cpu), which few indexes have; another build of
    # the version works too. --ignore-installed: the caller's own torch_npu does not count.
    install([*map(str, pip)], ["--no-deps", "--ignore-installed", f"torch_npu=={torch_npu}"])
    for script in (private / "bin").iterdir():  # their first line has the interpreter's path
        if not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(private), os.fsencode(final)))
    (private / MARK).write_text(sys.executable, "utf-8")


def _package_directories() -> list[str]:
    """The package directories of the caller's interpreter."""
    directories = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        directories.append(site.getusersitepackages())
    return [directory for directory in directories if os.path.isdir(directory)]


def install(pip: list[str], what: list[str]) -> None:
    variables = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_PIP}
    command = [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location", *what]
    done = subprocess.run(
        command, env=variables, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise PreparationError(
            f"{done.stdout}\npip could not install {' '.join(what)} for Python {sys.version.split()[0]}. "
            "It needs a network or a package index, and torch_npu has wheels for CPython 3.10 to 3.13 on Linux."
        )
