# SPDX-License-Identifier: Apache-2.0
"""Differences between releases of bisheng: modes, links, and the number of units that one command may compile."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
from trees import ASC, KERNEL, load
from virtual_cann.compiler import refusals

CCE = ["-xcce", "--cce-aicore-arch=dav-c220-vec", "-std=c++17", "-fPIC", "-O2"]
ARCHITECTURE = ["-xcce", "--npu-arch=dav-2201", "-std=c++17", "-fPIC"]
SOC = ["-xcce", "--cce-soc-version=Ascend910B1", "--cce-soc-core-type=VecCore", "-std=c++17", "-fPIC"]
UNITS = ("a.asc", "b.asc", "c.asc")


@pytest.fixture
def units(tmp_path):
    """Three sources, each with a kernel and an #include of the API."""
    for number, name in enumerate(UNITS):
        text = KERNEL.replace("twice", f"twice_{number}").replace("launch(", f"launch_{number}(")
        (tmp_path / name).write_text(f'#include "kernel_operator.h"\n{text}')
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "kernel_operator.h").write_text(
        "#pragma once\n#include <cstdint>\n#ifndef TILING_KEY_VAR\nuint64_t g_tilingKey;\n#endif\n"
    )
    return tmp_path


@pytest.fixture
def libraries(trees):
    """The options for the libraries that -xcce does not link by itself."""
    return [f"-L{trees[9.1]}/lib64", "-lruntime", "-lascendcl", "-lstdc++"]


FORMS = {
    "asc": ["-c", *ASC, "a.asc"],
    ".asc without -x": ["-c", "--npu-arch=dav-2201", "a.asc"],
    "--asc-aicore-lang": ["-c", "--asc-aicore-lang", "--npu-arch=dav-2201", "a.asc"],
    "xcce-npu-arch": ["-c", *ARCHITECTURE, "-Istub", "a.asc"],
    "soc": ["-c", *SOC, "-Istub", "a.asc"],
    "vec": ["-c", *CCE, "-Istub", "a.asc"],
}
REFUSED_FORMS = {
    "asc": ("asc", "language not recognized: 'asc'"),
    ".asc without -x": ("asc", "'a.asc': this compiler does not know .asc"),
    "--asc-aicore-lang": ("asc", "language not recognized: 'asc'"),
    "xcce-npu-arch": ("xcce-npu-arch", "unknown argument: '--npu-arch'"),
    "soc": ("soc", "unknown argument: '--cce-soc-version=Ascend910B1'"),
    "vec": ("vec", "architecture 'dav-c220-vec' is not one that is modelled: dav-2201, dav-c220"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_taken_unless_it_is_refused_by_its_name(bisheng, units, name):
    word, message = REFUSED_FORMS[name]
    others = ",".join(other for other in refusals.FORMS if other != word)
    done = bisheng(*FORMS[name], *(["-I", "stub"] if word == "asc" else []), refuses=others)
    assert done.returncode == 0, done.stderr
    done = bisheng(*FORMS[name], refuses=word)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_word_that_means_nothing_is_told_with_those_that_do(bisheng, units):
    for word in ("ascc", "units", "units>", "asc>3", "units>x"):
        done = bisheng("-c", *ASC, "a.asc", refuses=f"soc, {word}")
        assert done.returncode == 1
        assert f"VIRTUAL_CANN_REFUSES has '{word}': expected a comma list of asc, asc-dirs" in done.stderr
        assert "units>N" in done.stderr


@pytest.mark.parametrize("names", [UNITS[:2], UNITS])
def test_too_many_units_or_bytes_fail_where_fewer_do_not(bisheng, units, names):
    """A probe of two small units is accepted; the real sources are not."""
    link = [*ASC, "-shared", *names, "-o", "k.so"]
    is_many = len(names) > 2
    for word, says in (("units>2", "3 device sources in one command"), ("link-units>2", "linker command failed: 3")):
        done = bisheng(*link, refuses=word)
        assert (done.returncode != 0) == is_many, done.stderr
        assert (says in done.stderr) == is_many
        assert (units / "k.so").exists() != is_many
        (units / "k.so").unlink(missing_ok=True)
    assert "one command that links" in bisheng(*link, refuses="several-units").stderr
    size = (units / "a.asc").stat().st_size
    assert bisheng("-c", *ASC, "a.asc", refuses=f"several-units,bytes>{size}").returncode == 0
    assert f"{size} bytes in a device source" in bisheng("-c", *ASC, "a.asc", refuses=f"bytes>{size - 1}").stderr


def test_link_units_are_counted_in_two_steps_too(bisheng, units):
    for name in UNITS:
        assert bisheng(*ASC, "-c", name, "-o", f"{name}.o", refuses="link-units>2").returncode == 0
    done = bisheng("-shared", *(f"{name}.o" for name in UNITS), "-o", "k.so", refuses="link-units>2")
    assert "linker command failed: 3 sources and objects" in done.stderr


def test_units_of_cce_define_the_tiling_key_each_unless_told(bisheng, units, libraries):
    link = ["-Istub", "-shared", *UNITS[:2], "-o", "k.so", *libraries]
    for flags in (CCE, ARCHITECTURE, SOC):
        done = bisheng(*flags, *link)
        assert done.returncode == 1
        assert "ld.lld: error: duplicate symbol: g_tilingKey\n" in done.stderr
        assert (
            "ld.lld: error: duplicate symbol: g_tilingKey\n" not in bisheng(*flags, *link, "-DTILING_KEY_VAR=0").stderr
        )
    done = bisheng(*CCE, "-Istub", "-shared", "a.asc", "-o", "k.so", *libraries)
    assert done.returncode == 0, "one unit has nobody to clash with"
    done = bisheng(*ASC, *link)
    assert done.returncode == 0, "-x asc says it by itself"


@pytest.mark.parametrize("missing", ["-lstdc++", "-l"])
def test_cce_links_what_it_is_told_and_no_more(bisheng, units, libraries, missing):
    kept = [word for word in libraries if not word.startswith(missing)]
    link = ["-Istub", "-DTILING_KEY_VAR=0", "-shared", "a.asc", "-o", "k.so"]
    done = bisheng(*CCE, *link, *kept)
    assert done.returncode == 1
    assert "ld.lld: error: undefined symbol: " in done.stderr
    assert bisheng(*ASC, *link).returncode == 0
    assert bisheng(*ASC, *link, *kept, refuses="asc-dirs").returncode == 1
    assert bisheng(*ASC, *link, *libraries, refuses="asc-dirs").returncode == 0


def test_objects_of_cce_are_linked_by_fatobj_link(bisheng, trees, units, libraries):
    for name in UNITS[:2]:
        done = bisheng(*CCE, "-Istub", "-DTILING_KEY_VAR=0", "-c", name, "-o", f"{name}.o")
        assert done.returncode == 0, done.stderr
    link = ["-fPIC", "-shared", "a.asc.o", "b.asc.o", "-o", "libk.so", *libraries]
    without = bisheng(*link)
    assert without.returncode == 1
    assert "undefined symbol: virtual_cann_link_with_cce_fatobj_link" in without.stderr
    assert "unknown argument: '--cce-fatobj-link'" in bisheng("--cce-fatobj-link", *link, refuses="fatobj-link").stderr
    assert "links objects of -xcce" in bisheng(*CCE, "--cce-fatobj-link", "-shared", "a.asc", "-o", "k.so").stderr
    done = bisheng("--cce-fatobj-link", *link)
    assert done.returncode == 0, done.stderr
    library, _ = load(trees, units / "libk.so")
    x = (ctypes.c_float * 1)(3)
    library.launch_0(1, None, x, 1)
    library.launch_1(1, None, x, 1)
    assert x[0] == 12


# The plugin of 8.5

PASTED = """#define KERNEL(name) extern "C" __global__ __vector__ __aicore__ void name##_float(__gm__ float* x) {}
KERNEL(scale)
"""
SPELLED = """#define KERNEL(name) extern "C" __global__ __vector__ __aicore__ void name(__gm__ float* x) {}
KERNEL(scale_float)
extern "C" __global__ __vector__ __aicore__ void
own(__gm__ float* x) {}
"""


def test_the_plugin_does_not_find_a_kernel_whose_name_is_pasted(compile_text):
    done = compile_text(PASTED, generation=8.5)
    assert done.returncode == 1
    assert done.stderr.startswith("k.asc:2: error: 'scale_float' is a kernel whose name is not written here")
    assert compile_text(PASTED).returncode == 0, "later compilers do"
    assert compile_text(SPELLED, generation=8.5).returncode == 0


def test_a_launch_through_the_plugin_says_so(bisheng, trees, tmp_path):
    (tmp_path / "k.asc").write_text(KERNEL)
    for generation, flags, expected in ((8.5, ASC, 1), (8.5, CCE, 0), (9.1, ASC, 0)):
        libraries = [f"-L{trees[9.1]}/lib64", "-lruntime", "-lstdc++"]
        done = bisheng(*flags, "-shared", "k.asc", "-o", "libk.so", *libraries, generation=generation)
        assert done.returncode == 0, done.stderr
        program = (
            f"import ctypes; r = ctypes.CDLL({str(trees[9.1].parent / 'libascendcl.so')!r}, 2)\n"
            "k = ctypes.CDLL('./libk.so'); x = (ctypes.c_float * 1)(3); k.launch(1, None, x, 1)\n"
            "print(ctypes.c_bool.in_dll(r, 'last_through_plugin').value)"
        )
        said = subprocess.check_output(["python3", "-c", program], cwd=tmp_path, text=True)
        assert said == f"{bool(expected)}\n"
