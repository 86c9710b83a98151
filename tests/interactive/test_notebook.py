# SPDX-License-Identifier: Apache-2.0
"""What the package shows at a prompt, and that this costs a training script nothing."""

from __future__ import annotations

import json

import pytest
from toy_package import copy_package, needs_compiler, run_python_from_the_start

import npu_ce_jit
from npu_ce_jit import bootstrap
from npu_ce_jit.errors import BuildError, NpuCeJitError

# The package's modules after an import: each one more takes time in every process of every rank.
WARM = """
    npu_ce_jit _version bootstrap errors log session settings torch_compat
    api api.cross_entropy api.numbers
    jit jit.loader jit.sources jit.targets
    jit.cache jit.cache.entry jit.cache.key jit.cache.permissions jit.cache.roots jit.cache.store
    jit.toolchain jit.toolchain.discovery jit.toolchain.finding jit.toolchain.flags
    op op.checks op.lazy_kernels op.operators op.registration op.saved op.schema op.torch_private
    op.autograd op.autograd.functions op.autograd.over_logits
"""
MODULES = """
import sys, torch
import npu_ce_jit
print(*sorted(name for name in sys.modules if name.startswith("npu_ce_jit")))
"""


@needs_compiler
def test_a_warm_import_loads_no_more_than_it_needs(tmp_path):
    site = copy_package(tmp_path / "site")
    for _ in range(2):
        loaded = run_python_from_the_start(site, MODULES, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache")).stdout.split()
    allowed = {"npu_ce_jit" if name == "npu_ce_jit" else f"npu_ce_jit.{name}" for name in WARM.split()}
    assert set(loaded) <= allowed


def test_info_is_plain_data_that_shows_itself():
    info = npu_ce_jit.info()
    assert json.loads(info.as_json()) == info
    assert info["npu_ce_jit"] == npu_ce_jit.__version__
    assert info["backend"] == bootstrap.run().backend
    lines = repr(info).splitlines()
    assert lines[0] == f"npu_ce_jit {npu_ce_jit.__version__}"
    assert lines[3].split()[:2] == ["CPU", info["cpu"]["state"]]
    groups = ["kernels", "answers", "cache roots", "entries", "found"]
    assert [line for line in lines[1:] if line and not line.startswith(" ")] == groups
    shown = info._repr_html_()
    assert shown.startswith("<table>")
    assert shown.count("<th ") == 1 + len(groups)
    for fact in info["found"]:
        assert f"<td style='text-align:left'>{fact['name']}</td>" in shown


def test_what_info_shows_is_text_and_no_markup(monkeypatch):
    session = bootstrap.run()
    problem = NpuCeJitError("got <script>alert(1)</script> & more")
    monkeypatch.setattr(bootstrap, "run", lambda: session._replace(cpu=bootstrap.Kernels(problem=problem)))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in npu_ce_jit.info()._repr_html_()


def test_the_names_are_listed_and_no_others_invented():
    assert {"info", "build_log", "cross_entropy"} <= set(dir(npu_ce_jit))
    with pytest.raises(AttributeError, match="has no attribute 'inof'"):
        _ = npu_ce_jit.inof


@pytest.mark.skipif(bootstrap.run().cpu.artifact is None, reason="the CPU library could not be built here")
def test_the_log_of_the_build_that_is_in_use():
    assert "libnpu_ce_jit_cpu.so" in npu_ce_jit.build_log()


def test_the_log_of_a_build_that_failed_and_of_none(monkeypatch, tmp_path):
    (tmp_path / "log").write_text("toy.cpp:1: error", "utf-8")
    session = bootstrap.run()
    for problem, said in ((BuildError("no", "", "", (), str(tmp_path / "log")), None), (None, "No kernels for cpu")):
        made = session._replace(cpu=bootstrap.Kernels(problem=problem))
        monkeypatch.setattr(bootstrap, "run", lambda made=made: made)
        if said is None:
            assert npu_ce_jit.build_log() == "toy.cpp:1: error"
        else:
            with pytest.raises(NpuCeJitError, match=said):
                npu_ce_jit.build_log()
    monkeypatch.setattr(bootstrap, "run", lambda: session._replace(cpu=bootstrap.Kernels(problem=BuildError(
        "no", "", "", (), str(tmp_path / "gone")))))  # fmt: skip
    with pytest.raises(NpuCeJitError, match="log is gone"):
        npu_ce_jit.build_log()
