# SPDX-License-Identifier: Apache-2.0
"""A Python of aarch64 with torch, which runs on another machine by user-mode emulation.

`python` in its environments is a script that starts the emulator, and it is `sys.executable` there: so subprocesses of
sys.executable are emulated too, although the kernel has no binfmt handler. Other programs that an emulated process
starts run natively: ninja, and the cross compilers, which have the names of native ones there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from locations import CHECKOUT
from virtual_cann.cache import PreparationError, build_once
from virtual_cann.environment import MARK, install, torch_npu_for

TORCH = "2.10.0"  # most training on Ascend uses it, and package indexes have it for aarch64 without CUDA

# ARMv8.2 without SVE, as Kunpeng 920. The emulator's default has every extension.
_CPU = "neoverse-n1"
_EMULATOR = "qemu-aarch64"
_COMPILERS = {name: f"aarch64-linux-gnu-{name}" for name in ("gcc", "g++")}
_DEBIAN_PACKAGES = ("python3-dev", "libgomp1", "libstdc++6")
_PACKAGES = ("numpy", "filelock", "pytest", "hypothesis")


def default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base).absolute() / "npu_ce_jit" / "aarch64"


def environment(cache: Path, torch: str) -> Path:
    """An environment with this torch. Raises PreparationError."""
    root, packages = _root(cache), (f"torch=={torch}", *_PACKAGES)
    path = cache / "environments" / _digest(root.name, *packages)
    what = f"installing {packages[0]} for aarch64"
    return build_once(path, what, lambda private: _build_environment(private, path, root, packages))


def npu_environment(cache: Path, torch: str) -> Path:
    """An environment that also has torch_npu, with which `virtual_cann/run` finds an NPU. Raises PreparationError."""
    clang = _clang_dir()  # first, because it fails quickly where clang is missing
    torch_environment = environment(cache, torch)
    wanted = (f"torch_npu=={torch_npu_for(torch)}", "pyyaml")
    path = cache / "environments" / _digest(torch_environment.name, *wanted, str(clang))

    def build(private: Path) -> None:
        packages = _packages_dir(private, _root(cache))
        packages.mkdir(parents=True)
        (packages / "torch.pth").write_text(f"{_packages_dir(torch_environment, _root(cache))}\n", "utf-8")
        _build_environment(private, path, _root(cache), wanted)
        (packages / "clang").symlink_to(clang)
        (private / MARK).write_text(str(torch_environment / "bin" / "python"), "utf-8")

    return build_once(path, f"installing {wanted[0]} for aarch64", build)


def variables(environment: Path, callers: Mapping[str, str]) -> dict[str, str]:
    """The caller's variables, with those that activation sets, and the package on PYTHONPATH."""
    paths = {"PATH": environment / "bin", "PYTHONPATH": CHECKOUT}
    joined = {name: os.pathsep.join(filter(None, (str(path), callers.get(name)))) for name, path in paths.items()}
    kept = {name: value for name, value in callers.items() if name not in ("CXX", "PYTHONHOME")}
    return {**kept, **joined, "VIRTUAL_ENV": str(environment)}


def _root(cache: Path) -> Path:
    """A root directory with those of Debian's packages for aarch64 that Python needs."""
    path = cache / "roots" / _digest(platform.freedesktop_os_release().get("VERSION", ""), *_DEBIAN_PACKAGES)
    return build_once(path, "unpacking Debian's Python of aarch64", _build_root)


def _build_root(private: Path) -> None:
    """Installs them with an apt that has its own lists and cache, and takes nothing as installed."""
    apt = private / "apt"
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (apt / directory).mkdir(parents=True)
    (apt / "status").touch()
    settings = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Install-Recommends": "false",
        "Dir::State": apt / "state", "Dir::State::status": apt / "status", "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "",  # the user `_apt` cannot write here
    }  # fmt: skip
    apt_get = [_required("apt-get"), "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    _run([*apt_get, "update"])
    _run([*apt_get, "--yes", "--download-only", "install", *_DEBIAN_PACKAGES])
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        _run([_required("dpkg"), "--extract", str(package), str(private)])
    if not (private / "lib").exists():  # where the packages have all files in /usr
        (private / "lib").symlink_to("usr/lib")
    shutil.rmtree(apt)


def _build_environment(private: Path, final: Path, root: Path, packages: Iterable[str]) -> None:
    programs = private / "bin"
    programs.mkdir(parents=True)
    interpreter = root / "usr" / "bin" / "python3"
    for name, program in {**_COMPILERS, "ninja": "ninja"}.items():
        (programs / name).symlink_to(_required(program))
    # With its path from the script, Python finds pyvenv.cfg, and so is in a virtual environment.
    python = programs / "python"
    python.write_text(
        f'#!/bin/sh\nexec {_required(_EMULATOR)} -cpu {_CPU} -L {root} -0 "$0" {interpreter} "$@"\n', "utf-8"
    )
    python.chmod(0o755)
    (private / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\ninclude-system-site-packages = false\n", "utf-8")
    install([sys.executable, "-m", "pip", "--python", str(python)], ["--no-compile", *packages])
    for script in programs.iterdir():
        if not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(private), os.fsencode(final)))


def _packages_dir(environment: Path, root: Path) -> Path:
    version = (root / "usr" / "bin" / "python3").readlink().name
    return environment / "lib" / version / "site-packages"


def _clang_dir() -> Path:
    """The clang of this machine: all compilers, also the virtual CANN's, run natively."""
    found = importlib.util.find_spec("clang")
    if found is None or not found.submodule_search_locations:
        raise PreparationError("there is no libclang here: pip install -e '.[test]'")
    return Path(found.submodule_search_locations[0])


def _required(program: str) -> str:
    """The path of a program beside the running Python or on PATH."""
    found = shutil.which(program, path=os.path.dirname(sys.executable)) or shutil.which(program)
    if found is None:
        raise PreparationError(
            f"{program} is not on PATH. On Debian: apt-get install qemu-user g++-aarch64-linux-gnu; "
            "ninja comes with `pip install -e .`"
        )
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise PreparationError(f"{done.stdout}\nfailed: {' '.join(command)}")


def _digest(*facts: str) -> str:
    """A hash of the facts and of this file."""
    return hashlib.sha256("\n".join((*facts, Path(__file__).read_text("utf-8"))).encode()).hexdigest()[:16]
