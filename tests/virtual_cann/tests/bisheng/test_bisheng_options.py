# SPDX-License-Identifier: Apache-2.0
"""The command line of the virtual CANN's compiler: accepted and refused options, and the tree it is found in."""

from __future__ import annotations

import ctypes
import os
import subprocess

import pytest
from trees import ASC, KERNEL, load
from virtual_cann.layouts import LAYOUTS
from virtual_cann.runtime_library import VIRTUAL_CANN

CCE = ["-xcce", "--cce-aicore-arch=dav-c220-vec", "-std=c++17", "-fPIC", "-O2"]
LLVM = [
    "-mllvm", "-cce-aicore-stack-size=0x8000", "-mllvm", "-cce-aicore-function-stack-size=0x8000",
    "-mllvm", "-cce-aicore-record-overflow=true", "-mllvm", "-cce-aicore-addr-transform",
    "-mllvm", "-cce-aicore-dcci-insert-for-scalar=false",
]  # fmt: skip


ACCEPTED = {
    "asc": (9.1, [*ASC]),
    "asc in one word": (9.1, ["-xasc", *ASC[2:]]),
    "asc, no standard named": (9.1, ["-x", "asc", "--npu-arch=dav-2201"]),
    "asc, c++20": (9.1, ["-x", "asc", "--npu-arch=dav-2201", "-std=c++20"]),
    "asc, what cmake passes": (9.1, ["-DNDEBUG", "-std=c++17", "-O3", "--npu-arch=dav-2201", "--asc-aicore-lang"]),
    "asc, UB and sync": (9.1, [*ASC, "--cce-disable-asc-reserved-ubuf", "--cce-auto-sync=off", "-g", "-w"]),
    "cce with a chip": (
        8.3, ["-xcce", "-O3", "-std=c++17", "--cce-soc-version=Ascend910B3", "--cce-soc-core-type=VecCore", "--cce-auto-sync"],
    ),
    "cce with a chip of A3": (
        8.3, ["-xcce", "-std=c++17", "--cce-soc-version=Ascend910_9382", "--cce-soc-core-type=VecCore"],
    ),
    "cce with an architecture": (8.3, [*CCE, "--cce-auto-sync=on", *LLVM]),
    "cce with both sub-cores": (8.3, ["-xcce", "--std=c++17", "--cce-aicore-arch=dav-c220", *LLVM]),
    "cce in the newer compiler": (9.1, [*CCE, *LLVM, "--gcc-toolchain=/usr"]),
    "cce with the architecture's newer name": (9.1, ["-xcce", "--npu-arch=dav-2201", "-std=c++17", *LLVM]),
    "asc by the plugin": (8.5, [*ASC]),
    "cce beside the plugin": (8.5, [*CCE, *LLVM]),
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
        "-lstdc++",
        "-Wl,--no-undefined",
    ]
    done = bisheng(*flags, "-fPIC", "--shared", *include, "k.cpp", "-o", "libk.so", generation=generation)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    library, runtime = load(trees, tmp_path / "libk.so")
    x = (ctypes.c_float * 3)(1, 2, 3)
    library.launch(2, ctypes.c_void_p(77), x, 3)
    assert list(x) == [4, 8, 12]
    assert ctypes.c_char.in_dll(runtime, "last_kernel").value == b"t"
    assert ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(runtime, "last_kernel"))) == b"twice"
    assert ctypes.c_void_p.in_dll(runtime, "last_stream").value == 77


REFUSED = {
    "an unknown option": (9.1, [*ASC, "--cce-fast"], "unknown argument: '--cce-fast'"),
    "an unknown llvm option": (9.1, [*ASC, "-mllvm", "-fast"], "unknown argument: '-mllvm -fast'"),
    "two languages": (9.1, [*ASC, "-xcce"], "'-x asc' and '-xcce'"),
    "another language": (9.1, ["-x", "cuda"], "language not recognized: 'cuda'"),
    "asc without an architecture": (9.1, ["-x", "asc"], "--npu-arch is missing"),
    "cce without a chip": (8.3, ["-xcce", "-std=c++17"], "-xcce needs --cce-soc-version"),
    "asc in CANN 8.3": (8.3, [*ASC], "this compiler knows -xcce only"),
    "--npu-arch in CANN 8.3": (8.3, [*CCE, "--npu-arch=dav-2201"], "unknown argument: '--npu-arch'"),
    "--npu-arch beside -xcce in CANN 8.5": (8.5, ["-xcce", "-std=c++17", "--npu-arch=dav-2201"], "unknown argument: '--npu-arch'"),
    "c++20 in CANN 8.5": (8.5, [*ASC, "-std=c++20"], "invalid value 'c++20' in '-std='"),
    "another architecture": (9.1, ["-x", "asc", "--npu-arch=dav-3510"], "'dav-3510' is not one that is modelled"),
    "the new name in CANN 8.3": (8.3, ["-xcce", "-std=c++17", "--cce-aicore-arch=dav-2201"], "dav-c220, dav-c220-vec"),
    "a cube architecture": (8.3, ["-xcce", "-std=c++17", "--cce-aicore-arch=dav-c220-cube"], "not one that is modelled"),
    "a chip without its digit": (
        8.3, ["-xcce", "-std=c++17", "--cce-soc-version=Ascend910B", "--cce-soc-core-type=VecCore"], "name the chip in full",
    ),
    "a chip without a core type": (8.3, ["-xcce", "-std=c++17", "--cce-soc-version=Ascend910B3"], "--cce-soc-core-type=VecCore"),
    "cube cores": (
        8.3, ["-xcce", "-std=c++17", "--cce-soc-version=Ascend910B3", "--cce-soc-core-type=CubeCore"], "vector cores only",
    ),
    "cce without a standard": (8.3, ["-xcce", "--cce-aicore-arch=dav-c220-vec"], "-xcce needs -std=c++17"),
    "c++20 in CANN 8.3": (8.3, [*CCE[:2], "-std=c++20"], "invalid value 'c++20' in '-std='"),
    "c++14": (9.1, [*ASC, "-std=c++14"], "invalid value 'c++14' in '-std='"),
    "a device-only object": (8.3, [*CCE, "--cce-aicore-only"], "device-only object"),
    "relocatable device code": (9.1, [*ASC, "-dc"], "relocatable device code"),
    "-O1": (9.1, ["-x", "asc", "--npu-arch=dav-2201", "-O1"], "-O0, -O2 and -O3"),
    "a file that is not there": (9.1, [*ASC, "none.asc"], "no such file or directory: 'none.asc'"),
    "an option without its value": (9.1, [*ASC, "k.cpp", "-o"], "argument to '-o' is missing"),
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
    older = bisheng(*CCE, "-c", "k.cpp", generation=8.3)
    assert older.returncode == 1
    assert "k.cpp:1:" in older.stderr
    newer = bisheng(*CCE, "-c", "k.cpp")
    assert newer.returncode == 0, newer.stderr


def test_only_the_newer_language_finds_the_api_by_itself(bisheng, tmp_path):
    """-xcce needs -I, which the projects of its time pass."""
    (tmp_path / "k.cpp").write_text('#if !__has_include("kernel_operator.h")\n#error absent\n#endif\n')
    assert bisheng(*ASC, "-c", "k.cpp").returncode == 0
    assert "absent" in bisheng(*ASC, "-c", "k.cpp", refuses="asc-dirs").stderr
    for generation in LAYOUTS:
        done = bisheng(*CCE, "-c", "k.cpp", generation=generation)
        assert "k.cpp:2:" in done.stderr
        assert "absent" in done.stderr


def test_version_names_itself_and_its_content(bisheng, trees):
    lines = bisheng("--version").stdout.splitlines()
    assert "virtual CANN 9.1" in lines[0]
    assert "content test" in lines[0]
    assert lines[1].startswith("clang version 15.")
    assert "virtual CANN 8.3" in bisheng("--version", generation=8.3).stdout


@pytest.mark.parametrize(
    ("generation", "path"),
    [
        (8.3, "compiler/ccec_compiler/bin/bisheng"), (8.3, "tools/ccec_compiler/bin/bisheng"),
        (8.3, f"{os.uname().machine}-linux/ccec_compiler/bin/bisheng"), (8.3, "compiler/ccec_compiler/bin/ccec"),
        (9.1, f"{os.uname().machine}-linux/ccec_compiler/bin/bisheng"), (9.1, "tools/bisheng_compiler/bin/bisheng"),
        (9.1, "bin/bisheng"), (8.5, "bin/bisheng"),
    ],
)  # fmt: skip
def test_every_place_where_the_compiler_lies_leads_to_its_own_tree(trees, tmp_path, generation, path):
    (tmp_path / "link").symlink_to(trees[generation] / path)
    for program in (trees[generation] / path, tmp_path / "link"):
        assert f"virtual CANN {generation}" in subprocess.check_output([program, "--version"], text=True)


def test_outside_a_tree_it_says_how_to_get_one():
    done = subprocess.run([VIRTUAL_CANN / "bin" / "bisheng", "--version"], capture_output=True, text=True)
    assert done.returncode == 1
    assert str(VIRTUAL_CANN / "run") in done.stderr
