# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for the real sources: they build in half a second, and tests can inject faults into them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch_processes

import npu_ce_jit
from npu_ce_jit.jit.build.compile import build
from npu_ce_jit.jit.cache.entry import Artifact
from npu_ce_jit.jit.cache.key import CacheKey, cache_key
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.targets import Target, cpu_target
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not any(shutil.which(name) for name in ("g++", "clang++", "c++")),
    reason="needs a C++ compiler of a Linux machine on PATH",
)

EXPORT = 'extern "C" __attribute__((visibility("default")))'
# The functions that every library has; this one has no kernels.
NO_KERNELS = f"""
{EXPORT} void npu_ce_jit_register() {{}}
{EXPORT} const void* npu_ce_jit_kernels() {{ return nullptr; }}
{EXPORT} int huge_pages = -1;
{EXPORT} void npu_ce_jit_set_huge_pages(int most_mib) {{ huge_pages = most_mib; }}
"""
_BODY = f'#include "toy.h"\n{NO_KERNELS}{EXPORT} int toy() {{ return TOY; }}\n'
_NPU_SOURCES = {
    "ascendc/toy.h": "#ifndef TOY_FILL\n#define TOY_FILL 42.0f\n#endif\n",
    "ascendc/toy.asc": """
#include "kernel_operator.h"
#include "toy.h"
extern "C" __global__ NPU_CE_VECTOR __aicore__ void toy_kernel(GM_ADDR out) {
  AscendC::TPipe pipe;
  AscendC::TQue<AscendC::QuePosition::VECOUT, 1> queue;
  pipe.InitBuffer(queue, 1, 256);
  AscendC::GlobalTensor<float> to;
  to.SetGlobalBuffer((__gm__ float*)out, 64);
  AscendC::LocalTensor<float> tile = queue.AllocTensor<float>();
  AscendC::Duplicate(tile, TOY_FILL, 64);
  queue.EnQue(tile);
  tile = queue.DeQue<float>();
  AscendC::DataCopy(to, tile, 64);
  queue.FreeTensor(tile);
}
extern "C" void toy_launch(void* stream, void* out) { toy_kernel<<<1, nullptr, stream>>>((GM_ADDR)out); }
""",
    # The real glue registers kernels in C++; this one does so in a Python module.
    "csrc/npu/toy.cpp": """
#include <dlfcn.h>
extern "C" void toy_launch(void* stream, void* out);
extern "C" __attribute__((visibility("default"))) void toy_glue(void* stream, void* out) { toy_launch(stream, out); }
template <class F> F python(const char* name) { return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name)); }
extern "C" __attribute__((visibility("default"))) void npu_ce_jit_register() {
  const int state = python<int (*)()>("PyGILState_Ensure")();
  python<int (*)(const char*)>("PyRun_SimpleString")("import toy_kernels");
  python<void (*)(int)>("PyGILState_Release")(state);
}
extern "C" __attribute__((visibility("default"))) const void* npu_ce_jit_kernels() { return nullptr; }
extern "C" __attribute__((visibility("default"))) void npu_ce_jit_use(const void*) {}
extern "C" __attribute__((visibility("default"))) void npu_ce_jit_try(const void*) {}
""",
}
_OURS = ("NPU_CE_JIT_", "XDG_CACHE_HOME", "CXX", "MAX_JOBS", "ASCEND_", "TMPDIR")


class Toy(NamedTuple):
    """The inputs of one build."""

    settings: Settings
    toolchain: Toolchain
    target: Target
    key: CacheKey
    store: Store

    def build(self) -> Artifact:
        return build(self.target, self.settings, self.toolchain, self.key, self.store)

    def find(self) -> Artifact | None:
        return self.store.find(self.key)

    @property
    def key_dir(self) -> Path:
        return self.store.roots[0].layout_dir / self.key.name


def write_sources(root_dir: Path, body: str = _BODY) -> Path:
    """Writes one unit and one header to `root_dir`/csrc."""
    cpu_dir = root_dir / "csrc" / "cpu"
    cpu_dir.mkdir(parents=True, exist_ok=True)
    (cpu_dir / "toy.cpp").write_text(body, "utf-8")
    (cpu_dir / "toy.h").write_text("#define TOY 42\n", "utf-8")
    return root_dir


def write_npu_sources(root_dir: Path) -> None:
    """Writes one kernel, and the glue that launches it."""
    for name, text in _NPU_SOURCES.items():
        (root_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (root_dir / name).write_text(text, "utf-8")


def toy(tmp_path: Path, body: str = _BODY, **variables: str) -> Toy:
    """Toy sources, with a cache of their own below `tmp_path`."""
    settings = Settings.from_env(
        {"PATH": os.environ["PATH"], "NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
        | variables
    )
    assert settings.problems == ()
    sources = Sources.of(write_sources(tmp_path / "toy", body))
    toolchain = Toolchain(settings)
    target = cpu_target(settings, toolchain, sources)
    return Toy(settings, toolchain, target, cache_key(target), Store.of(settings))


def compiler_script(tmp_path: Path, before: str) -> str:
    """The path of a script that runs the shell lines `before`, and then the real compiler."""
    real = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))))
    script = tmp_path / "cxx"
    script.write_text(f'#!/bin/sh\n{before}\nexec {real} "$@"\n', "utf-8")
    script.chmod(0o755)
    return str(script)


def copy_package(site_dir: Path, body: str = _BODY) -> Path:
    """Installs this package to `site_dir` as a wheel does, but with toy sources."""
    package_dir = Path(npu_ce_jit.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__", "csrc", "ascendc")
    shutil.copytree(package_dir, site_dir / "npu_ce_jit", ignore=ignore)
    write_sources(site_dir / "npu_ce_jit", body)
    return site_dir


def start_python(site_dir: Path, code: str, **variables: str) -> torch_processes.Running:
    """Starts a process with torch imported and the package in `site_dir`, but without this package's variables."""
    return torch_processes.start(code, _environment(site_dir, variables), site_dir)


def run_python(site_dir: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`start_python`, and waits; fails the test where the process does not exit with 0."""
    done = start_python(site_dir, code, **variables).wait(600.0)
    assert done.returncode == 0, done.stderr
    return done


def run_python_from_the_start(
    site_dir: Path, code: str, python: Sequence[str | Path] = (sys.executable,), **variables: str
) -> subprocess.CompletedProcess[str]:
    """`run_python` in a process that has imported nothing."""
    done = subprocess.run(
        [*python, "-c", code], env=_environment(site_dir, variables), cwd=site_dir, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def _environment(site_dir: Path, variables: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    path = os.pathsep.join(filter(None, [str(site_dir), os.environ.get("PYTHONPATH")]))
    return {**inherited, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **variables}


def fork(task: Callable[[], object]) -> int:
    """Runs `task` in a forked child, which need not import torch again; returns its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            task()
            code = 0
        except BaseException:  # noqa: BLE001  the parent gets only an exit code
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    """Waits for a forked child, and returns its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_running(pid: int | str) -> bool:
    """Whether the process still runs; a killed one may do so for a moment."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie's is empty
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(is_so: Callable[[], object], seconds: float = 300.0) -> None:
    """Waits until the condition holds; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
