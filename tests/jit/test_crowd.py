# SPDX-License-Identifier: Apache-2.0
"""Many processes and threads at once: one of them compiles, all get the library, and a warm process starts nothing."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

from toy_package import compiler_script, copy_package, exit_code, fork, needs_compiler, run_python, start_python, toy

from npu_ce_jit.jit.loader import load_or_build

pytestmark = needs_compiler

COLD_ONLY = ("setuptools", "torch.utils.cpp_extension", "filelock", "ninja", "npu_ce_jit.jit.build.compile")
STARTS = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec")
IMPORT = f"""
import ctypes, json, sys, torch
started = []
sys.addaudithook(lambda event, _: started.append(event) if event in {STARTS} else None)
import npu_ce_jit
from npu_ce_jit import bootstrap
session = bootstrap.current()
library = str(session.cpu.artifact.library)
assert ctypes.CDLL(library).toy() == 42
cold_only = [name for name in {COLD_ONLY} if name in sys.modules]
print(json.dumps({{"backend": session.backend, "library": library, "started": started, "cold only": cold_only}}))
"""
THREADS = """
import threading, torch, npu_ce_jit
x, target, said = torch.randn(4, 6), torch.tensor([0, 1, 2, 3]), []
ready = threading.Barrier(8)

def call():
    ready.wait()
    try:
        npu_ce_jit.cross_entropy(x, target)
    except NotImplementedError as error:
        said.append(str(error))

threads = [threading.Thread(target=call) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(*said, sep="\\n")
"""


def _counting_compiler(tmp_path: Path) -> tuple[str, Path]:
    """A compiler for CXX, and the file to which it adds a dot at each link."""
    links = tmp_path / "links"
    return compiler_script(tmp_path, f'case "$*" in *-shared*) printf . >> {links};; esac; sleep 0.3'), links


def _reports(site_dir: Path, count: int, **variables: str) -> list[dict[str, Any]]:
    """The reports of `count` processes that import at once."""
    processes = [start_python(site_dir, IMPORT, **variables) for _ in range(count)]
    reports = []
    for process in processes:
        done = process.wait(600.0)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr})
    return reports


def test_16_cold_imports_at_once_compile_once_and_warm_ones_start_nothing(tmp_path):
    site_dir = copy_package(tmp_path / "site")
    installed = sorted(site_dir.rglob("*"))
    compiler, links = _counting_compiler(tmp_path)
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "CXX": compiler}
    cold = _reports(site_dir, 16, **variables)
    assert links.read_text("ascii") == "."
    assert {report["backend"] for report in cold} == {"cpp"}
    (library,) = {report["library"] for report in cold}
    for report in _reports(site_dir, 4, **variables):
        assert report == {"backend": "cpp", "library": library, "started": [], "cold only": [], "stderr": ""}
    assert sorted(site_dir.rglob("*")) == installed, "nothing is written where the package is installed"


def test_64_cold_processes_compile_once_and_64_warm_ones_start_nothing(tmp_path):
    compiler, links = _counting_compiler(tmp_path)
    one = toy(tmp_path, CXX=compiler)
    begin = time.monotonic() + 1.0
    started: list[str] = []

    def use():
        time.sleep(max(0.0, begin - time.monotonic()))
        artifact = load_or_build(one.target, one.settings, one.toolchain, may_build=True)
        assert artifact is not None
        assert ctypes.CDLL(str(artifact.library)).toy() == 42

    def use_warm():
        for name in COLD_ONLY:  # imported when the parent built
            sys.modules.pop(name, None)
        sys.addaudithook(lambda event, _: started.append(event) if event in STARTS else None)
        use()
        assert started == []
        assert not set(COLD_ONLY) & set(sys.modules)

    assert [exit_code(pid) for pid in [fork(use) for _ in range(64)]] == [0] * 64
    assert links.read_text("ascii") == "."
    assert [exit_code(pid) for pid in [fork(use_warm) for _ in range(64)]] == [0] * 64
    assert links.read_text("ascii") == "."


def test_8_threads_whose_first_call_comes_at_once_compile_once(tmp_path):
    """The lock between processes is off, so that only the one between threads is tested."""
    site_dir = copy_package(tmp_path / "site")
    compiler, links = _counting_compiler(tmp_path)
    variables = {"NPU_CE_JIT_BUILD": "lazy", "NPU_CE_JIT_LOCK_TIMEOUT": "0", "CXX": compiler}
    done = run_python(site_dir, THREADS, **variables, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"))
    said = "expected a kernel of _forward for cpu in the library, got none"
    assert done.stdout.count(said) == 8, "the toy has none: loaded"
    assert links.read_text("ascii") == "."
