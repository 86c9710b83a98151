# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md shows what `doctor` prints on machines that lack something; these machines are made here.

Each is below a home of its own, with small sources in place of the real ones. The page leaves out the checks that are
ok.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from locations import CHECKOUT
from probes import may_mount
from toy_package import copy_package, needs_compiler, write_npu_sources

from npu_ce_jit import __version__

PAGE = CHECKOUT / "docs" / "troubleshooting.md"
HOME = "/home/ada"

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(not PAGE.exists(), reason="the page is not installed with the package"),
]
mounts = pytest.mark.skipif(not may_mount(), reason="needs the right to mount a file system in a namespace of its own")


class Machine(NamedTuple):
    """A home, with the package in its site-packages."""

    home: Path
    environment: dict[str, str]

    @property
    def site(self) -> Path:
        return self.home / "site-packages"

    def run(self, command: str, *wrapper: str) -> str:
        """The output and errors of a command of this package, as shown on the page."""
        environment = {name: value for name, value in self.environment.items() if value}
        done = subprocess.run(
            [*wrapper, environment.pop("PYTHON", sys.executable), "-m", *command.split()[1:]],
            env=environment, cwd=self.site, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        return _neutral(done.stdout, self.home)


def _neutral(text: str, home: Path) -> str:
    """Replaces what differs between machines and days."""
    text = text.replace(f"{home}/tmp", "/tmp").replace(str(home), HOME)
    text = re.sub(r"; \S+\+\+\)", "; /usr/bin/g++)", text.replace(f"npu_ce_jit-{os.getuid()}", "npu_ce_jit-1000"))
    text = text.replace(f"{__version__}-torch{torch.__version__}-{platform.machine()}", "0.1.0-torch2.13.0-x86_64")
    text = text.replace(str(torch.__version__), "2.13.0").replace(platform.machine(), "x86_64")
    text = re.sub(r"baseline-[0-9a-f]{12}", "baseline-1f2e3d4c5b6a", text)
    text = re.sub(r"dav_2201-[0-9a-f]{12}", "dav_2201-6a5b4c3d2e1f", text)
    text = re.sub(r"/(\.b|e)-[\w.-]+", r"/\1-0a1b2c3d4e5f", text)
    text = re.sub(r"'bytes': \d+, 'sha256': '[0-9a-f]+'", "'bytes': ..., 'sha256': '...'", text)
    return re.sub(r"(built in|failed after|in) \d+\.\d s", r"\1 6.1 s", text)


def _telling(text: str) -> list[str]:
    lines = text.splitlines()
    return [line.rstrip() for line in lines if not line.startswith(("ok  ", "npu_ce_jit: still building: "))]


def _no_compiler(machine: Machine) -> None:
    machine.environment["PATH"] = str(machine.home / "bin")


def _cxx_that_is_not_there(machine: Machine) -> None:
    machine.environment["CXX"] = "g++-13"


def _no_ninja(machine: Machine) -> None:
    python = machine.home / "venv/bin/python3"
    python.parent.mkdir(parents=True)
    python.symlink_to(os.path.realpath(sys.executable))
    (machine.site / "ninja").mkdir()
    (machine.site / "ninja/__init__.py").write_text("", "utf-8")
    compilers = machine.home / "bin"
    compilers.mkdir()
    (compilers / "g++").symlink_to(shutil.which("g++") or shutil.which("c++") or "")
    packages = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
    path = os.pathsep.join((str(machine.site), packages))
    machine.environment.update(PYTHON=str(python), PYTHONPATH=path, PATH=str(compilers))


def _writable_by_others(machine: Machine) -> None:
    root = machine.home / ".cache/npu_ce_jit"
    root.mkdir(parents=True)
    root.chmod(0o777)


def _broken_source(machine: Machine) -> None:
    (machine.site / "npu_ce_jit/csrc/cpu/forward.cpp").write_text("#error an edit\n", "utf-8")


def _damaged_entry(machine: Machine) -> None:
    machine.run("$ npu_ce_jit build")
    (library,) = machine.home.rglob("*.so")
    os.truncate(library, 4096)


def _torch_npu(machine: Machine) -> None:
    package = machine.site / "torch_npu"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "version.py").write_text("__version__ = '2.13.0'", "utf-8")
    write_npu_sources(machine.site / "npu_ce_jit")


def _cann(machine: Machine) -> None:
    bisheng = machine.home / "cann/bin/bisheng"
    bisheng.parent.mkdir(parents=True)
    says = "bisheng: error while loading shared libraries: libascendc.so"
    bisheng.write_text(f"#!/bin/sh\necho '{says}'\nexit 127\n", "utf-8")
    bisheng.chmod(0o755)
    bisheng.with_name("ld.lld").symlink_to("/bin/true")
    (machine.home / "cann/version.cfg").write_text("toolkit_running_version=[8.5.0:8.5.0]\n", "utf-8")
    machine.environment["ASCEND_HOME_PATH"] = str(machine.home / "cann")
    write_npu_sources(machine.site / "npu_ce_jit")


def _cann_that_does_not_run(machine: Machine) -> None:
    _torch_npu(machine)
    _cann(machine)


def _nothing(_: Machine) -> None:
    pass


def _mounted(options: str, places: str = ".cache tmp") -> tuple[str, ...]:
    """A wrapper that mounts a file system over the cache, and over TMPDIR too; only the command sees it."""
    mount = f'for place in {places}; do mkdir -p "$HOME/$place"; mount -t tmpfs -o {options} tmpfs "$HOME/$place"; done'
    return ("unshare", "-m", "sh", "-c", f'PATH=$PATH:/bin:/usr/bin; {mount}; exec "$@"', "sh")


MACHINES: dict[str, tuple[Callable[[Machine], None], tuple[str, ...]]] = {
    "No compiler": (_no_compiler, ()),
    "CXX names no program": (_cxx_that_is_not_there, ()),
    "Ninja is missing": (_no_ninja, ()),
    "Others can write to the cache": (_writable_by_others, ()),
    "The home cannot be written": (_nothing, _mounted("ro", ".cache")),
    "The cache is mounted noexec": (_nothing, _mounted("noexec")),
    "The disk is full": (_nothing, _mounted("size=20k")),
    "A source does not compile": (_broken_source, ()),
    "An entry of the cache is damaged": (_damaged_entry, ()),
    "torch_npu without CANN": (_torch_npu, ()),
    "CANN without torch_npu": (_cann, ()),
    "bisheng does not run": (_cann_that_does_not_run, ()),
}


def _output_of(name: str, home: Path) -> list[str]:
    """The lines that the page must show, after their command."""
    set_up, wrapper = MACHINES[name]
    machine = Machine(home, {
        "HOME": str(home), "TMPDIR": str(home / "tmp"), "PATH": os.environ["PATH"], "NPU_CE_JIT_CPU_ISA": "baseline",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONDONTWRITEBYTECODE": "1",
    })  # fmt: skip
    (home / "tmp").mkdir()
    copy_package(machine.site)
    set_up(machine)
    command = "$ python -m npu_ce_jit doctor"
    return [command, *_telling(machine.run(command.replace("python -m ", ""), *wrapper))]


def _sections() -> dict[str, list[str]]:
    """The first block of each section."""
    found = {}
    for section in PAGE.read_text("utf-8").split("\n## ")[1:]:
        block = re.search(r"^```text\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        if block is not None:
            found[section.partition("\n")[0]] = block[1].splitlines()
    return found


def test_each_machine_has_its_section_and_each_output_its_machine():
    assert list(_sections()) == list(MACHINES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=mounts if wrapper else ()) for name, (_, wrapper) in MACHINES.items()]
)
def test_the_page_shows_what_doctor_prints(name, tmp_path):
    if name == "A source does not compile" and not shutil.which("g++"):
        pytest.skip("the page has g++'s words, and there is no g++ on PATH")
    assert _output_of(name, tmp_path) == _sections()[name]
