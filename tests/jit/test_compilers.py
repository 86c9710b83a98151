# SPDX-License-Identifier: Apache-2.0
"""Values of CXX other than a working C++ compiler, and how a compiler's exit code is found."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from toy_package import (
    EXPORT,
    NO_KERNELS,
    compiler_script,
    copy_package,
    exit_code,
    fork,
    needs_compiler,
    run_python,
    run_python_from_the_start,
    toy,
)

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.build.compile import _run_ninja
from npu_ce_jit.jit.cache.key import cache_key
from npu_ce_jit.jit.toolchain import discovery as toolchain_module

pytestmark = needs_compiler
needs_gcc = pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("g++")), reason="needs gcc and g++ on PATH")

USES_THE_CXX_LIBRARY = f"""
#include <string>
{NO_KERNELS}
{EXPORT} int toy(int n) {{ return static_cast<int>((std::string(n, 'a') + std::string(2 * n, 'b')).size()); }}
"""
BROKEN = "int toy() { return undeclared_name; }\n"


def _error(one) -> BuildError:
    with pytest.raises(BuildError) as caught:
        one.build()
    return caught.value


@needs_gcc
def test_of_a_driver_for_c_the_one_for_cxx_is_named_and_it_builds(tmp_path):
    error = _error(toy(tmp_path, USES_THE_CXX_LIBRARY, CXX="gcc -pipe"))
    driver = error.hint.rpartition(", ")[2].rstrip(".")
    assert driver == f"{shutil.which('gcc')[:-3]}g++"
    assert toy(tmp_path, USES_THE_CXX_LIBRARY, CXX=driver).build().library.is_file()


@pytest.mark.parametrize("writes", ["nothing", "objects"])
def test_a_compiler_that_succeeds_and_writes_nothing_is_told_by_what_it_did_not_make(tmp_path, writes):
    only = "case $* in *-shared*) exit 0;; esac" if writes == "objects" else "exit 0"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, only))
    error = _error(one)
    missing = "libnpu_ce_jit_cpu.so" if writes == "objects" else "csrc/cpu/toy.o"
    assert error.first_lines == (f"error: the compiler ended with code 0 and made no {missing}",)
    assert error.hint == f"{tmp_path}/cxx does not compile: set CXX to a C++17 compiler, or unset it."
    assert one.find() is None


@pytest.mark.parametrize("ninja", sorted({*filter(None, [shutil.which("ninja", path="/usr/bin:/bin")]), ""}))
def test_where_sigchld_is_ignored_a_build_works_and_a_failure_has_the_compilers_words(tmp_path, ninja):
    toys = toy(tmp_path), toy(tmp_path / "broken", BROKEN)
    if ninja:  # releases of ninja treat an ignored signal differently
        found = toys[0].toolchain.ninja._replace(value=ninja)
        toys = tuple(each._replace(toolchain=each.toolchain.replace(ninja=found)) for each in toys)

    def task() -> None:
        one, broken = toys
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        assert one.build() == one.find()
        assert any("undeclared_name" in line for line in _error(broken).first_lines)
        assert subprocess.run(["false"]).returncode == 0, "the signal is ignored as before"
        with pytest.raises(ChildProcessError):  # no child process is left
            os.waitpid(-1, os.WNOHANG)

    assert exit_code(fork(task)) == 0


def test_where_a_handler_of_the_program_s_own_takes_the_exit_code_the_compilers_words_are_told(tmp_path, monkeypatch):
    def lost(*arguments):
        _, said = _run_ninja(*arguments)
        return True, said

    monkeypatch.setattr("npu_ce_jit.jit.build.compile._run_ninja", lost)
    assert any("undeclared_name" in line for line in _error(toy(tmp_path, BROKEN)).first_lines)


CPU_INFO = """\
processor	: {core}
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 17
model name	: AMD EPYC 9654 96-Core Processor
cpu MHz		: {mhz}
flags		: fpu sse2 {flags}
"""


def _cpu_info(file: Path, flags: str = "avx2", mhz: float = 2400.0, cores: int = 2) -> None:
    text = "\n".join(CPU_INFO.format(core=core, mhz=mhz + core, flags=flags) for core in range(cores))
    file.write_text(text, "utf-8")


@pytest.mark.parametrize("flag", ["-march=native", "-mcpu=native"])
def test_for_the_cpu_of_a_machine_each_machine_has_its_own_key(tmp_path, monkeypatch, flag):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(toolchain_module, "_CPU_INFO", file)

    def key(**cpu) -> str:
        _cpu_info(file, **cpu)
        return toy(tmp_path, CXX=f"g++ {flag}").key.text

    first = key()
    assert "\nCPU: AMD EPYC 9654 96-Core Processor " in first
    assert key(mhz=3100.5, cores=4) == first, "neither clock nor cores make another library"
    assert key(flags="avx2 avx512f") != first
    file.unlink()
    assert "\nCPU: that of " in toy(tmp_path, CXX=f"g++ {flag}").key.text


def test_a_compiler_that_does_not_ask_for_the_cpu_leaves_it_out_of_the_key(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain_module, "_CPU_INFO", tmp_path / "nothing")
    for cxx in ("", "g++", "g++ -march=x86-64-v3"):
        one = toy(tmp_path, CXX=cxx)
        assert "\nCPU: " not in cache_key(one.target).text


def _asan() -> str:
    """The path of AddressSanitizer's runtime; "" if there is none."""
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    return found if os.path.isabs(found) and os.path.exists(found) else ""


needs_asan = pytest.mark.skipif(
    not shutil.which("g++") or not _asan(), reason="needs g++ on PATH and its address sanitizer's runtime"
)

IMPORT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import npu_ce_jit
print(npu_ce_jit.info()["backend"], *[one.message for one in caught if "npu_ce_jit" in str(one.message)])
"""


@needs_asan
@pytest.mark.parametrize("hidden", [False, True])
def test_a_sanitizer_in_cxx_kills_no_import_and_serves_where_its_runtime_comes_first(tmp_path, hidden):
    site_dir = copy_package(tmp_path / "site")
    cxx = "g++ -fsanitize=address"
    if hidden:
        cxx = compiler_script(tmp_path, 'set -- -fsanitize=address "$@"')
    variables = {"CXX": cxx, "NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    for _ in range(2):  # the first builds, the second finds
        said = run_python(site_dir, IMPORT, **variables).stdout
        assert said.startswith("reference npu_ce_jit: The slower reference implementation is used."), said
        assert (
            "Take -fsanitize out of CXX, or start the program with LD_PRELOAD=$($CXX -print-file-name=libasan" in said
        )
    preloaded = {"LD_PRELOAD": _asan(), "ASAN_OPTIONS": "detect_leaks=0", "NPU_CE_JIT_BUILD": "never"}
    said = run_python_from_the_start(site_dir, IMPORT, **variables | preloaded).stdout
    assert said.strip() == "cpp"
