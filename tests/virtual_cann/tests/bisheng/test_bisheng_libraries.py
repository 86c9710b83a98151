# SPDX-License-Identifier: Apache-2.0
"""The output of the virtual CANN's compiler: objects, libraries, dependencies, and launches."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

import pytest
from trees import ASC, ENVIRONMENT, KERNEL, SONAME, load


def test_objects_are_linked_by_bisheng_and_by_nothing_else(bisheng, trees, tmp_path):
    (tmp_path / "k.asc").write_text(KERNEL)
    (tmp_path / "host.cpp").write_text("int host() { return 3; }\n")
    assert bisheng(*ASC, "-c", "k.asc", "-o", "k.o").returncode == 0
    assert bisheng("-c", "-fPIC", "host.cpp").returncode == 0
    library = subprocess.run(
        ["g++", "-shared", "k.o", "host.o", "-o", "g.so"], cwd=tmp_path, capture_output=True, text=True
    )
    assert library.returncode
    assert "virtual_cann_link_with_bisheng" in library.stderr
    done = bisheng("-shared", "k.o", "host.o", "-o", "libk.so", "-Wl,--no-undefined")
    assert done.returncode == 0, done.stderr
    load(trees, tmp_path / "libk.so")
    dynamic = subprocess.check_output(["readelf", "-d", tmp_path / "libk.so"], text=True)
    assert f"[{SONAME}]" in dynamic
    assert "RPATH" not in dynamic.upper().replace("RUNPATH", "RPATH")


def test_visibility_is_as_asked(bisheng, tmp_path):
    (tmp_path / "k.asc").write_text(KERNEL.replace("void launch", '__attribute__((visibility("default"))) void launch'))
    done = bisheng(*ASC, "-fvisibility=hidden", "-shared", "k.asc", "-o", "libk.so")
    assert done.returncode == 0, done.stderr
    exported = subprocess.check_output(["nm", "-D", "--defined-only", tmp_path / "libk.so"], text=True).split()
    assert "launch" in exported
    assert "twice" not in exported


def test_several_sources_make_one_library(bisheng, trees, tmp_path):
    (tmp_path / "a.asc").write_text(KERNEL)
    (tmp_path / "b.asc").write_text(KERNEL.replace("twice", "again").replace("launch(", "launch_b("))
    (tmp_path / "host.cpp").write_text('extern "C" int host() { return 3; }\n')
    done = bisheng("--npu-arch=dav-2201", "host.cpp", "a.asc", "b.asc", "-shared", "-fPIC", "-o", "libab.so")
    assert done.returncode == 0, done.stderr
    library, _ = load(trees, tmp_path / "libab.so")
    assert library.host() == 3
    assert library.launch_b


def test_each_library_has_its_own_of_what_is_one_in_a_library(bisheng, trees, tmp_path):
    inline = "template <class T> struct Table { static inline int value = NUMBER; };\n"
    for number in (1, 2):
        code = f'#define NUMBER {number}\n{inline}{KERNEL}extern "C" int number() {{ return Table<int>::value; }}\n'
        (tmp_path / "k.asc").write_text(code)
        done = bisheng(*ASC, "-shared", "-fPIC", "k.asc", "-o", f"lib{number}.so")
        assert done.returncode == 0, done.stderr
        library, _ = load(trees, tmp_path / f"lib{number}.so")
        assert library.number() == number


@pytest.mark.parametrize("every_header", [True, False])
def test_depfile_names_the_target_and_the_users_headers(bisheng, tmp_path, every_header):
    (tmp_path / "own.h").write_text("#pragma once\n")
    (tmp_path / "k.asc").write_text(f'#include "own.h"\n{KERNEL}')
    done = bisheng(*ASC, "-c", "k.asc", "-o", "out.o", "-MD" if every_header else "-MMD", "-MF", "k.d")
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "k.d").read_text().replace("\\\n", " ").split()
    assert words[:2] == ["out.o:", "k.asc"]
    assert "own.h" in words
    assert any(word.endswith("machine/launch.h") for word in words) == every_header


def test_errors_of_the_host_compiler_name_the_users_line(compile_text):
    done = compile_text(
        KERNEL + "\n#define TWO_LINES(x) \\\n  x\n__aicore__ inline void f() {\n  TWO_LINES(unknown_name);\n}\n"
    )
    assert done.returncode == 1
    line = KERNEL.count("\n") + 5
    assert f"k.asc:{line}:" in done.stderr
    assert "unknown_name" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_host_compiler_it_says_so(trees, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    (tmp_path / "k.asc").write_text(KERNEL)
    done = subprocess.run(
        [trees[9.1] / "bin" / "bisheng", *ASC, "-c", "k.asc"], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": str(tmp_path / "bin")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs g++ on PATH" in done.stderr


def test_what_was_compiled_before_is_not_compiled_again(trees, tmp_path):
    """The cached compilation repeats the compiler's messages; options, source and g++ are in its key."""
    compiled = tmp_path / "compiled"
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "g++"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-fpreprocessed*) printf . >> {compiled};; esac\nexec {shutil.which("g++")} "$@"\n'
    )
    script.chmod(0o755)

    def compile_(*more: str) -> tuple[int, str]:
        before = compiled.stat().st_size if compiled.exists() else 0
        done = subprocess.run(
            [trees[9.1] / "bin" / "bisheng", *ASC, *more, "-c", "k.asc"], cwd=tmp_path, capture_output=True,
            text=True, env={**ENVIRONMENT, "PATH": f"{script.parent}{os.pathsep}{ENVIRONMENT['PATH']}"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "k.o").exists()
        (tmp_path / "k.o").unlink()
        return compiled.stat().st_size - before, done.stderr

    text = KERNEL + '[[deprecated]] int old();\nextern "C" int number() { return NUMBER + old(); }\n'
    (tmp_path / "k.asc").write_text("#define NUMBER 1\n" + text)
    times, said = compile_()
    assert times == 1
    assert "deprecated" in said
    assert compile_() == (0, said)
    assert compile_("-O0")[0] == 1
    (tmp_path / "k.asc").write_text("#define NUMBER 2\n" + text)
    assert compile_()[0] == 1
    script.write_text(script.read_text() + "# another compiler\n")
    assert compile_()[0] == 1


# Launches


def test_launches_of_every_shape(compile_text, trees, tmp_path):
    done = compile_text(
        """#include <cstdint>
#include "machine/launch.h"
struct Plan { int32_t add; struct { int32_t times; } inner; };
template <typename T, int N>
__global__ __aicore__ void add(__gm__ T* x) { x[0] += T(N); }
namespace outer { namespace inner {
__global__ __aicore__ void planned(__gm__ float* x, Plan plan) { x[0] += plan.add * plan.inner.times; }
__global__ __aicore__ void bare() {}
} }
// add<<<1, 2>>>(x) in a comment
extern "C" const char* text() { return "add<<<1, 2>>>(x)"; }
extern "C" uint32_t blocks(uint32_t a, uint32_t b) { return (a << 3) >> b; }
extern "C" int launch(float* x, void* stream) {
  const int64_t one = 1;
  add<float, 3><<<one, nullptr, stream>>>(x);
  ::add<float, (1 << 2)><<<blocks(1, 2), 0, stream>>>(x);
  outer::inner::planned
      <<<
          1,

          nullptr, stream
      >>>  (x, Plan{5, {2}});
  if (x[0] < 0) outer::inner::bare<<<1, nullptr, nullptr>>>(); else outer::inner::bare<<<2, nullptr, stream>>>();
  return __LINE__;
}
""",
        "-shared",
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "k.o").rename(tmp_path / "k.so")
    library, runtime = load(trees, tmp_path / "k.so")
    x = (ctypes.c_float * 1)(1)
    assert library.launch(x, ctypes.c_void_p(5)) == 24
    assert x[0] == 1 + 3 + 2 * 4 + 5 * 2
    library.text.restype = ctypes.c_char_p
    assert library.text() == b"add<<<1, 2>>>(x)"
    assert ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(runtime, "last_kernel"))) == b"bare"
    assert ctypes.c_uint32.in_dll(runtime, "last_blocks").value == 2


HOST = "void host(void* s, float* x) {{ {} }}\n"
BAD_LAUNCHES = {
    "the stream in the second place": ("k<<<1, s>>>(x);", "has two arguments: the second is the L2 control"),
    "no stream": ("k<<<1>>>(x);", "has not three arguments"),
    "four arguments": ("k<<<1, nullptr, s, 0>>>(x);", "has not three arguments"),
    "not a kernel": ("other<<<1, nullptr, s>>>(x);", "no __global__ function of this source has that name"),
    "no arguments": ("k<<<1, nullptr, s>>>;", "a launch is written kernel<<<blocks, nullptr, stream>>>(arguments)"),
    "called like a function": ("k(x);", "'k' is a kernel: launch it with <<<"),
    "a device function": ("d(x);", "'d' is __aicore__ and called on the host"),
}


@pytest.mark.parametrize("name", BAD_LAUNCHES)
def test_a_bad_launch_is_refused(compile_text, name):
    statement, message = BAD_LAUNCHES[name]
    done = compile_text(
        '#include "machine/launch.h"\n__global__ __aicore__ void k(__gm__ float* x) {}\n'
        "__aicore__ inline void d(__gm__ float* x) {}\nvoid other(float*) {}\n" + HOST.format(statement)
    )
    assert done.returncode == 1
    assert f"k.asc:5: error: {'' if message.startswith('a launch') else chr(39)}" in done.stderr
    assert message in done.stderr


def test_the_host_may_use_anything(compile_text):
    done = compile_text(
        "#include <cmath>\n#include <cstdio>\n#include <cstring>\n#include <vector>\n"
        "double half(double x) { static double last; last = std::exp(x) + 1.0; std::vector<double> v{last};\n"
        '  printf("%f", v[0]); try { throw 1; } catch (int) {} return *new double(last / 2.0); }\n'
        "struct Base { virtual ~Base() {} };\n"
    )
    assert done.returncode == 0, done.stderr
