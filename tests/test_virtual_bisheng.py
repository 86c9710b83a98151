# SPDX-License-Identifier: Apache-2.0
"""The virtual CANN's compiler: what it takes, what it refuses, and what it makes of a launch."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from virtual_cann.compiler import driver
from virtual_cann.layouts import LAYOUTS, build_tree

ASC = ["-x", "asc", "--npu-arch=dav-2201", "-std=c++17", "-fPIC", "-O2"]
CCE = ["-xcce", "--cce-aicore-arch=dav-c220-vec", "-std=c++17", "-fPIC", "-O2"]
LLVM = [
    "-mllvm", "-cce-aicore-stack-size=0x8000", "-mllvm", "-cce-aicore-function-stack-size=0x8000",
    "-mllvm", "-cce-aicore-record-overflow=true", "-mllvm", "-cce-aicore-addr-transform",
    "-mllvm", "-cce-aicore-dcci-insert-for-scalar=false",
]  # fmt: skip

# The interpreter that runs the tests, not a version manager's script that takes longer than the compiler.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

KERNEL = """
#include <cstdint>
#include "machine/launch.h"
extern "C" __global__ __aicore__ void twice(__gm__ float* x, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    x[i] = x[i] * 2.0f;
  }
}
extern "C" void launch(uint32_t blocks, void* stream, float* x, int32_t count) {
  twice<<<blocks, nullptr, stream>>>(x, count);
}
"""

# Runs a launch at once, and remembers it. Other tests of the process may have loaded the whole one by its own name.
SONAME = "libascendcl_of_a_few_lines.so"
RUNTIME = """
#include "machine/launch.h"
extern "C" { char last_kernel[100]; uint32_t last_blocks; void* last_stream; }
void virtual_cann::enqueue_kernel(KernelLaunch launch, void* stream) {
  last_kernel[launch.kernel.copy(last_kernel, 99)] = 0;
  last_blocks = launch.blocks;
  last_stream = stream;
  for (uint32_t block = 0; block < launch.blocks; ++block) launch.body();
}
"""

# Stands for the API: a system header, so not judged itself.
API = """
#pragma once
#include <cstdint>
namespace AscendC {
template <class T> struct GlobalTensor {
  template <class U> void SetGlobalBuffer(U* p, uint64_t n = 0) { data = reinterpret_cast<T*>(p); }
  T* data;
};
template <class... A> void printf(const char*, A...) {}
template <class T> void Exp(T*, T*, int) {}
struct TPipe { void Init() {} void Process() {} };
}
"""


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[int, Path]:
    """Both layouts, over a runtime of a few lines."""
    root = tmp_path_factory.mktemp("cann")
    (root / "runtime.cpp").write_text(RUNTIME)
    (root / "acl").mkdir()
    (root / "api").mkdir()
    (root / "api" / "api.h").write_text(API)
    virtual_cann = Path(__file__).parent / "virtual_cann"
    subprocess.run(
        ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{virtual_cann}", f"-Wl,-soname,{SONAME}", root / "runtime.cpp",
         "-o", root / "libascendcl.so"], check=True,
    )  # fmt: skip
    for generation, layout in LAYOUTS.items():
        build_tree(root / str(generation), layout, root / "libascendcl.so", root / "acl", "test")
    return {generation: root / str(generation) for generation in LAYOUTS}


@pytest.fixture
def bisheng(trees, tmp_path):
    """Runs the compiler of a generation in a directory of its own."""

    def run(*arguments: str, generation: int = 9) -> subprocess.CompletedProcess:
        program = trees[generation] / LAYOUTS[generation].compiler_dir / "bisheng"
        return subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)

    return run


@pytest.fixture
def compile_text(trees, tmp_path, monkeypatch, capfd):
    """Compiles a text as k.asc, in this process: a third of the time."""
    monkeypatch.chdir(tmp_path)

    def compile_(text: str, *flags: str) -> subprocess.CompletedProcess:
        (tmp_path / "k.asc").write_text(text)
        arguments = [*ASC, "-isystem", str(trees[9].parent / "api"), *(flags or ["-c"]), "k.asc", "-o", "k.o"]
        code = driver.main([str(trees[9] / "bin" / "bisheng"), *arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return compile_


def _load(trees, library: Path) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    # Bound to this runtime, and not to the whole one that is there for everybody.
    runtime = ctypes.CDLL(trees[9].parent / "libascendcl.so", mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(library, mode=os.RTLD_NOW | os.RTLD_DEEPBIND), runtime


# -- the command line

ACCEPTED = {
    "asc": (9, [*ASC]),
    "asc in one word": (9, ["-xasc", *ASC[2:]]),
    "asc, no standard named": (9, ["-x", "asc", "--npu-arch=dav-2201"]),
    "asc, c++20": (9, ["-x", "asc", "--npu-arch=dav-2201", "-std=c++20"]),
    "asc, what cmake passes": (9, ["-DNDEBUG", "-std=c++17", "-O3", "--npu-arch=dav-2201", "--asc-aicore-lang"]),
    "asc, UB and sync": (9, [*ASC, "--cce-disable-asc-reserved-ubuf", "--cce-auto-sync=off", "-g", "-w"]),
    "cce with a chip": (
        8, ["-xcce", "-O3", "-std=c++17", "--cce-soc-version=Ascend910B3", "--cce-soc-core-type=VecCore", "--cce-auto-sync"],
    ),
    "cce with a chip of A3": (
        8, ["-xcce", "-std=c++17", "--cce-soc-version=Ascend910_9382", "--cce-soc-core-type=VecCore"],
    ),
    "cce with an architecture": (8, [*CCE, "--cce-auto-sync=on", *LLVM]),
    "cce with both sub-cores": (8, ["-xcce", "--std=c++17", "--cce-aicore-arch=dav-c220", *LLVM]),
    "cce in the newer compiler": (9, [*CCE, *LLVM, "--gcc-toolchain=/usr"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_flags_that_we_pass_build_a_library(bisheng, trees, tmp_path, name):
    generation, flags = ACCEPTED[name]
    (tmp_path / "k.cpp").write_text(KERNEL)
    home = trees[generation]
    include = [
        f"-I{home}/compiler/tikcpp/tikcfw",
        f"-I{home}/include",
        f"-L{home}/lib64",
        "-lruntime",
        "-Wl,--no-undefined",
    ]
    done = bisheng(*flags, "-fPIC", "--shared", *include, "k.cpp", "-o", "libk.so", generation=generation)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    library, runtime = _load(trees, tmp_path / "libk.so")
    x = (ctypes.c_float * 3)(1, 2, 3)
    library.launch(2, ctypes.c_void_p(77), x, 3)
    assert list(x) == [4, 8, 12]
    assert ctypes.c_char.in_dll(runtime, "last_kernel").value == b"t"
    assert ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(runtime, "last_kernel"))) == b"twice"
    assert ctypes.c_void_p.in_dll(runtime, "last_stream").value == 77


REFUSED = {
    "an unknown option": (9, [*ASC, "--cce-fast"], "unknown argument: '--cce-fast'"),
    "an unknown llvm option": (9, [*ASC, "-mllvm", "-fast"], "unknown argument: '-mllvm -fast'"),
    "two languages": (9, [*ASC, "-xcce"], "'-x asc' and '-xcce'"),
    "another language": (9, ["-x", "cuda"], "language not recognized: 'cuda'"),
    "asc without an architecture": (9, ["-x", "asc"], "--npu-arch is missing"),
    "cce without a chip": (8, ["-xcce", "-std=c++17"], "-xcce needs --cce-soc-version"),
    "asc in CANN 8": (8, [*ASC], "CANN 8, which knows -xcce only"),
    "--npu-arch in CANN 8": (8, [*CCE, "--npu-arch=dav-2201"], "unknown argument: '--npu-arch'"),
    "another architecture": (9, ["-x", "asc", "--npu-arch=dav-3510"], "'dav-3510' is not one that is modelled"),
    "the new name in CANN 8": (8, ["-xcce", "-std=c++17", "--cce-aicore-arch=dav-2201"], "dav-c220, dav-c220-vec"),
    "a cube architecture": (8, ["-xcce", "-std=c++17", "--cce-aicore-arch=dav-c220-cube"], "not one that is modelled"),
    "a chip without its digit": (
        8, ["-xcce", "-std=c++17", "--cce-soc-version=Ascend910B", "--cce-soc-core-type=VecCore"], "name the chip in full",
    ),
    "a chip without a core type": (8, ["-xcce", "-std=c++17", "--cce-soc-version=Ascend910B3"], "--cce-soc-core-type=VecCore"),
    "cube cores": (
        8, ["-xcce", "-std=c++17", "--cce-soc-version=Ascend910B3", "--cce-soc-core-type=CubeCore"], "vector cores only",
    ),
    "cce without a standard": (8, ["-xcce", "--cce-aicore-arch=dav-c220-vec"], "-xcce needs -std=c++17"),
    "c++20 in CANN 8": (8, [*CCE[:2], "-std=c++20"], "invalid value 'c++20' in '-std='"),
    "c++14": (9, [*ASC, "-std=c++14"], "invalid value 'c++14' in '-std='"),
    "a device-only object": (8, [*CCE, "--cce-aicore-only"], "device-only object"),
    "relocatable device code": (9, [*ASC, "-dc"], "relocatable device code"),
    "-O1": (9, ["-x", "asc", "--npu-arch=dav-2201", "-O1"], "-O0, -O2 and -O3"),
    "a file that is not there": (9, [*ASC, "none.asc"], "no such file or directory: 'none.asc'"),
    "an option without its value": (9, [*ASC, "k.cpp", "-o"], "argument to '-o' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_flags_are_refused_by_name(bisheng, tmp_path, name):
    generation, flags, message = REFUSED[name]
    (tmp_path / "k.cpp").write_text(KERNEL)
    done = bisheng("-c", *flags, *([] if "k.cpp" in flags else ["k.cpp"]), generation=generation)
    assert done.returncode == 1
    assert done.stderr.startswith("bisheng: error: ")
    assert message in done.stderr
    assert not (tmp_path / "k.o").exists()


def test_the_older_compiler_lacks_the_newer_keywords(bisheng, tmp_path):
    (tmp_path / "k.cpp").write_text("__global__ __vector__ void k(__gm__ float* x) {}\n")
    older = bisheng(*CCE, "-c", "k.cpp", generation=8)
    assert older.returncode == 1
    assert "k.cpp:1:" in older.stderr
    newer = bisheng(*CCE, "-c", "k.cpp")
    assert newer.returncode == 0, newer.stderr


def test_only_the_newer_language_finds_the_api_by_itself(bisheng, tmp_path):
    """-xcce needs -I, as the projects of its time pass it."""
    (tmp_path / "k.cpp").write_text('#if !__has_include("kernel_operator.h")\n#error absent\n#endif\n')
    assert bisheng(*ASC, "-c", "k.cpp").returncode == 0
    for generation in LAYOUTS:
        done = bisheng(*CCE, "-c", "k.cpp", generation=generation)
        assert "k.cpp:2:" in done.stderr
        assert "absent" in done.stderr


def test_version_names_itself_and_its_content(bisheng, trees):
    lines = bisheng("--version").stdout.splitlines()
    assert "virtual CANN 9" in lines[0]
    assert "content test" in lines[0]
    assert lines[1].startswith("clang version 15.")
    assert "virtual CANN 8" in bisheng("--version", generation=8).stdout


@pytest.mark.parametrize(
    ("generation", "path"),
    [
        (8, "compiler/ccec_compiler/bin/bisheng"), (8, "tools/ccec_compiler/bin/bisheng"),
        (8, f"{os.uname().machine}-linux/ccec_compiler/bin/bisheng"), (8, "compiler/ccec_compiler/bin/ccec"),
        (9, f"{os.uname().machine}-linux/ccec_compiler/bin/bisheng"), (9, "tools/bisheng_compiler/bin/bisheng"),
        (9, "bin/bisheng"),
    ],
)  # fmt: skip
def test_every_place_where_the_compiler_lies_leads_to_its_own_tree(trees, tmp_path, generation, path):
    (tmp_path / "link").symlink_to(trees[generation] / path)
    for program in (trees[generation] / path, tmp_path / "link"):
        assert f"virtual CANN {generation}" in subprocess.check_output([program, "--version"], text=True)


def test_outside_a_tree_it_says_how_to_get_one():
    done = subprocess.run(
        [Path(__file__).parent / "virtual_cann" / "bin" / "bisheng", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "tests/virtual_cann/run" in done.stderr


# -- objects, links and dependencies


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
    _load(trees, tmp_path / "libk.so")
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
    library, _ = _load(trees, tmp_path / "libab.so")
    assert library.host() == 3
    assert library.launch_b


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
        [trees[9] / "bin" / "bisheng", *ASC, "-c", "k.asc"], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": str(tmp_path / "bin")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs g++ on PATH" in done.stderr


# -- launches


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
    library, runtime = _load(trees, tmp_path / "k.so")
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


# -- device code

BROKEN_RULES = {
    "double": ("__aicore__ void f() { double x = 0; }", "'double' in device code: an AI core has no double"),
    "long double": ("__aicore__ long double f();", "'double' in device code"),
    "double parameter": ("__global__ __aicore__ void k(double x) {}", "'double' in device code"),
    "double literal": ("__aicore__ float f(float x) { return x * 2.5; }", "'2.5' is a double"),
    "double subtracted": ("__aicore__ float f(float x) { return (x) - 2.5; }", "'2.5' is a double"),
    "double exponent": ("__aicore__ float f(float x) { return 1e-5 + x; }", "'1e-5' is a double"),
    "std function": ("__aicore__ float f(float x) { return std::exp(x); }", "'std::exp' in device code"),
    "std container": ("__aicore__ void f() { std::string s; }", "'std::string' in device code"),
    "std in the signature": ("__aicore__ void f(std::string s) {}", "'std::string' in device code"),
    "using std": ("__aicore__ void f() { using namespace std; }", "'std' in device code"),
    "libm": ("__aicore__ float f(float x) { return expf(x); }", "'expf' in device code: the C library is host code"),
    "libm, qualified": ("__aicore__ float f(float x) { return ::logf(x); }", "'logf' in device code"),
    "libm in an expression": ("__aicore__ float f(float x) { return 1.0f / sqrt(x); }", "'sqrt' in device code"),
    "memcpy": ("__aicore__ void f(char* a, char* b) { memcpy(a, b, 4); }", "use AscendC::DataCopy"),
    "malloc": ("__aicore__ void f() { void* p = malloc(4); }", "use TPipe::InitBuffer"),
    "new": ("__aicore__ void f() { int* p = new int; }", "'new' in device code"),
    "delete": ("__aicore__ void f(int* p) { delete p; }", "'delete' in device code"),
    "throw": ("__aicore__ void f() { throw 1; }", "'throw' in device code"),
    "try": ("__aicore__ void f() { try { } catch (...) { } }", "'try' in device code"),
    "dynamic_cast": ("__aicore__ void f(B* b) { dynamic_cast<A*>(b); }", "'dynamic_cast' in device code"),
    "typeid": ("__aicore__ void f(int b) { typeid(b); }", "'typeid' in device code"),
    "virtual device function": ("struct A { __aicore__ virtual void f() {} };", "'virtual' in device code"),
    "virtual in a device class": ("struct A { virtual void g(); __aicore__ void f() {} };", "'virtual' in device code"),
    "virtual base": ("struct B {}; struct A : virtual B { __aicore__ void f() {} };", "'A' has a virtual base"),
    "static variable": ("__aicore__ void f() { static int calls = 0; }", "'static' in device code"),
    "thread_local": ("__aicore__ void f() { thread_local int x; }", "'thread_local' in device code"),
    "recursion": ("__aicore__ int f(int n) { return n ? f(n - 1) : 0; }", "'f' calls itself"),
    "recursion by this": ("struct A { __aicore__ void f() { this->f(); } };", "'f' calls itself"),
    "host function": ("int h(int x) { return x; } __aicore__ int f() { return h(1); }", "'h' is host code"),
    "host function template": ("template <class T> T h() { return T(); } __aicore__ int f() { return h<int>(); }", "'h' is host"),
    "host member": ("struct A { void p() {} __aicore__ void q() { p(); } };", "'p' is host code"),
    "host member of an object": ("struct A { void p() {} }; __aicore__ void f() { A a; a.p(); }", "'p' is host code"),
    "host member of a template": (
        "template <class T> struct A { void Process() {} }; __global__ __aicore__ void k() { A<int> op; op.Process(); }",
        "'Process' is host code",
    ),
    "host member by pointer": ("struct A { void p() {} }; __aicore__ void f(A* a) { a->p(); }", "'p' is host code"),
    "host constructor": ("struct A { A() {} }; __aicore__ void f() { A a; }", "'A::A' is host code"),
    "host static member": ("struct A { static int p() { return 1; } }; __aicore__ int f() { return A::p(); }", "'p' is host"),
    "in a member defined outside": ("struct A { __aicore__ void f(); }; __aicore__ void A::f() { throw 1; }", "'throw' in"),
    "in a constructor's initialisers": ("struct A { float x; __aicore__ A() : x{expf(1.0f)} {} };", "'expf' in device code"),
    "in a lambda": ("__aicore__ void f() { auto g = [&](float x) { return logf(x); }; }", "'logf' in device code"),
    "in a macro": ("#define LOG(x) logf(x)\n__aicore__ float f(float x) { return LOG(x); }", "'logf' in device code"),
    "kernel calls a kernel": ("__global__ __aicore__ void a() {} __global__ __aicore__ void b() { a(); }", "device code cannot"),
    "launch from the device": (
        "__global__ __aicore__ void a() {} __global__ __aicore__ void b() { a<<<1, nullptr, nullptr>>>(); }", "only the host can",
    ),
    "kernel without a core": ("__global__ void k() {}", "'k' is __global__ and not __aicore__"),
    "kernel that returns": ("__global__ __aicore__ int k() { return 1; }", "a kernel returns void"),
    "kernel as a member": ("struct A { __global__ __aicore__ void k(); };", "make it a free function"),
    "kernel with a raw pointer": ("__global__ __aicore__ void k(float* x) {}", "'float* x' has no address space"),
    "kernel with a reference": ("struct P { int a; }; __global__ __aicore__ void k(const P& p) {}", "is a reference to the host"),
    "kernel with an object": ("struct P { P() {} int a; }; __global__ __aicore__ void k(P p) {}", "is no plain struct"),
    "kernel on cube cores": ("__global__ __mix__(1, 2) void k() {}", "vector cores only"),
    "SetGlobalBuffer of a raw pointer": (
        "__aicore__ void f(__gm__ uint8_t* x) { AscendC::GlobalTensor<float> g; g.SetGlobalBuffer((float*)x, 4); }",
        "'float*' given to SetGlobalBuffer has no address space: write '__gm__ float*'",
    ),
    "SetGlobalBuffer of a raw pointer, newer cast": (
        "__aicore__ void f(__gm__ uint8_t* x) { AscendC::GlobalTensor<float> g; g.SetGlobalBuffer(reinterpret_cast<float*>(x)); }",
        "has no address space",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_a_rule_of_device_code_is_enforced(compile_text, name):
    source, message = BROKEN_RULES[name]
    done = compile_text(f"\n{source}\n")
    assert done.returncode == 1
    line = 2 + source.count("\n")
    errors = done.stderr.splitlines()
    assert any(error.startswith(f"k.asc:{line}: error: ") and message in error for error in errors), done.stderr


LEGAL = {
    "numbers": "__aicore__ void f2(float) {} __aicore__ float f(float x) { float y = 1.0, z = -1e-5; f2(2.0); return x * 2.5f + 0x1F + 1'000 + 1u + (y < 2.0f); }",
    "host class with any member": "#include <cmath>\n#include <string>\nstruct H { H() {} std::string s; virtual ~H() {} double d() { return exp(1.0); } };",
    "compile-time std": (
        "#include <limits>\n#include <type_traits>\ntemplate <class T> __aicore__ int f() { if constexpr (std::is_same_v<T, int>) { return std::numeric_limits<T>::max(); }"
        " typename std::conditional<true, int, T>::type x = 0; static_assert(std::is_integral<T>::value, \"\"); return x; }"
    ),
    "names that only look like libm": (
        "struct L { float exp, log; __aicore__ void Log() {} }; __aicore__ void f() { L l; l.exp = l.log; l.Log();"
        " AscendC::Exp(&l.exp, &l.log, 1); AscendC::GlobalTensor<float> floor; float pow(3.0f); }"
    ),
    "own function named like libm's": "namespace own { __aicore__ inline float round(float x, int) { return x; } }"
    " using own::round; __aicore__ float f() { return round(1.0f, 2); }",
    "printf of the API": '__aicore__ void f() { AscendC::printf("%d", 1); }',
    "printf without its namespace": '#include <cstdio>\n__global__ __vector__ void hello() { printf("hello"); }',
    "casts of whole literals": "template <class T> __aicore__ float f() { T x = (T)1.0; return (float)-0.5; }",
    "questions about double": "#include <type_traits>\ntemplate <class T> __aicore__ bool f() { return std::is_same_v<T, double>; }",
    "constexpr functions and tables": (
        "constexpr int h(int x) { return x + 1; } __aicore__ int f() { static constexpr int t[] = {1, 2}; return h(t[0]); }"
    ),
    "overloads call one another": "__aicore__ int f(int a, int b) { return a + b; } __aicore__ int f(int a) { return f(a, 1); }",
    "templates that end": "template <int N> __aicore__ int f() { if constexpr (N > 0) { return f<N - 1>(); } else { return 0; } }",
    "members of other objects": (
        "struct A { __aicore__ void Process() {} }; struct B { A a; __aicore__ void Process() { a.Process(); } };"
        " struct H { void Init() {} }; __aicore__ void f() { AscendC::TPipe pipe; pipe.Init(); pipe.Process(); }"
    ),
    "constructors": (
        "struct A { __aicore__ inline A(int x) : a_(x), b_{x} {} __aicore__ A(const A&) = delete; __aicore__ ~A() {}"
        " int a_, b_; }; struct P { int x = 0; }; __aicore__ void f() { A a(1); P p; P q{1}; }"
    ),
    "lambda": "__aicore__ int f() { auto g = [](int x) { return x; }; return g(1); }",
    "plain structs by value": "struct P { int a[4]; struct { float b; } c; }; __global__ __aicore__ void k(P p, const uint8_t n) {}",
    "pointers": (
        "#define GM_ADDR __gm__ uint8_t*\nextern \"C\" __global__ __aicore__ void k(GM_ADDR x, __gm__ const float* y, __gm__ void* z) {"
        " AscendC::GlobalTensor<float> g; g.SetGlobalBuffer((__gm__ float*)x, 4); g.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(x + 1));"
        " __gm__ float* p = (__gm__ float*)z; g.SetGlobalBuffer(p + 4); g.SetGlobalBuffer((p)); float* local = (float*)&g; }"
    ),
    "vector keyword instead of aicore": "__global__ __vector__ void k(__gm__ float* x) {} __vector__ __global__ __aicore__ void l() {}",
    "batch mode": "__schedmode__(1) __global__ __mix__(0, 1) void k() {}",
    "static function": "static __aicore__ inline int f() { return 1; } __aicore__ int g() { return f(); }",
    "out-of-class template member": (
        "template <class T> class A { public: __aicore__ inline void Init(int n = 3); private: T x; };"
        " template <class T> __aicore__ inline void A<T>::Init(int n) { x = n; }"
    ),
    "a device function that the host declares": "__aicore__ int f(); __aicore__ int f() { return 1; }",
    "loops and goto": "__aicore__ int f(int n) { int s = 0; for (int i = 0; i < n; ++i) { s += i; } return n > 3 ? s : -s; }",
}  # fmt: skip


@pytest.mark.parametrize("name", LEGAL)
def test_what_only_resembles_a_fault_compiles(compile_text, name):
    done = compile_text(f'#include "api.h"\n{LEGAL[name]}\n')
    assert done.returncode == 0, done.stderr


def test_every_fault_of_a_source_is_told_at_once(compile_text):
    done = compile_text("__aicore__ void f() {\n  double x = 0;\n  x = sqrt(x);\n}\n__global__ void k(int* p) {}\n")
    lines = [line.split(": error: ")[0] for line in done.stderr.splitlines()]
    assert lines == ["k.asc:2", "k.asc:3", "k.asc:5", "k.asc:5"]


def test_headers_of_the_user_are_judged_too(compile_text, tmp_path):
    (tmp_path / "own.h").write_text("\n__aicore__ inline float f(float x) { return expf(x); }\n")
    done = compile_text('#include "own.h"\n')
    assert done.returncode == 1
    assert "own.h:2: error: 'expf'" in done.stderr
