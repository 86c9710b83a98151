# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from npu_ce_jit.errors import ToolchainError
from npu_ce_jit.jit.toolchain import discovery as toolchain_module
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings


def _program(directory: Path, name: str) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / name
    program.write_text("#!/bin/sh\n", "utf-8")
    program.chmod(0o755)
    return str(program)


def _discover(**variables: str) -> toolchain_module.Toolchain:
    return Toolchain(Settings.from_env(variables))


def test_discovery_starts_no_process(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    facts = _discover(PATH="/usr/bin:/bin")
    assert facts.facts()["cxx"] is facts.cxx
    assert facts.torch_version.value == str(torch.__version__)
    assert facts.torch_git.value == torch.version.git_version
    assert Path(facts.torch_dir.require(), "include").is_dir()


def test_every_absent_fact_says_where_was_looked_and_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "executable", "")
    facts = _discover()
    for fact in (facts.cxx, facts.ninja, facts.torch_npu_version):
        assert fact.value is None
        assert fact.where
        assert fact.hint
        with pytest.raises(ToolchainError) as caught:
            fact.require()
        assert caught.value.hint == fact.hint


def test_a_fact_is_looked_for_when_it_is_asked_for_and_then_stays(tmp_path):
    facts = _discover(PATH=str(tmp_path / "bin"))
    mine = _program(tmp_path / "bin", "g++")
    assert facts.cxx.value == mine
    Path(mine).unlink()
    assert facts.cxx.value == mine


def test_compilers_are_tried_in_order(tmp_path):
    plain = _program(tmp_path / "bin", "c++")
    assert _discover(PATH=str(tmp_path / "bin")).cxx_command == [plain]
    gcc = _program(tmp_path / "bin", "g++")
    assert _discover(PATH=str(tmp_path / "bin")).cxx_command == [gcc]


def test_cxx_wins_and_may_have_arguments_and_spaces(tmp_path):
    _program(tmp_path / "bin", "g++")
    mine = _program(tmp_path / "my tools", "my-c++")
    facts = _discover(PATH=str(tmp_path / "bin"), CXX=f"'{mine}' -pipe")
    assert facts.cxx_command == [mine, "-pipe"]
    assert facts.cxx.where == "CXX"


@pytest.mark.parametrize("text", ["no-such-compiler", "'unbalanced"])
def test_a_cxx_that_is_no_program_is_not_replaced_by_another(tmp_path, text):
    _program(tmp_path / "bin", "g++")
    cxx = _discover(PATH=str(tmp_path / "bin"), CXX=text).cxx
    assert cxx.value is None
    assert text in cxx.where


def test_ninja_beside_python_is_found_with_an_empty_path(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    ninja = _program(tmp_path / "bin", "ninja")
    assert _discover().ninja.value == ninja


def test_ninja_of_the_wheel_is_found_without_importing_it(tmp_path, monkeypatch):
    site_dir = tmp_path / "lib" / "python3" / "site-packages"
    (site_dir / "ninja").mkdir(parents=True)
    (site_dir / "ninja" / "__init__.py").write_text("raise SystemExit('imported')", "utf-8")
    monkeypatch.delitem(sys.modules, "ninja", raising=False)
    monkeypatch.syspath_prepend(site_dir)
    ninja = _program(tmp_path / "bin", "ninja")
    assert _discover().ninja.value == ninja


def test_torch_npu_is_read_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text("raise SystemExit('imported')", "utf-8")
    (tmp_path / "torch_npu" / "version.py").write_text(
        "__version__ = '2.13.0.post1'\ngit_version = '0123456789abcdef'\n", "utf-8"
    )
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert _discover().torch_npu_version.value == "2.13.0.post1 git 0123456789ab"


@pytest.mark.parametrize(
    ("machine", "capability", "wanted", "isa"),
    [
        ("x86_64", "AVX512", "", "avx512"),
        ("x86_64", "AVX2", "", "avx2"),
        ("x86_64", "DEFAULT", "", "baseline"),
        ("aarch64", "DEFAULT", "", "neon"),
        ("riscv64", "DEFAULT", "", "baseline"),
        ("x86_64", "AVX512", "avx2", "avx2"),
        ("aarch64", "DEFAULT", "baseline", "baseline"),
        ("x86_64", "AVX2", "avx512", None),
        ("x86_64", "AVX2", "neon", None),
        ("aarch64", "DEFAULT", "avx2", None),
    ],
)
def test_the_best_instructions_of_this_cpu_unless_it_lacks_what_is_asked(monkeypatch, machine, capability, wanted, isa):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    fact = _discover(NPU_CE_JIT_CPU_ISA=wanted).cpu_isa
    assert fact.value == isa
    assert isa is not None or "NPU_CE_JIT_CPU_ISA" in fact.hint


@pytest.mark.parametrize(
    ("page_kib", "order", "asked", "value"),
    [
        (4, "9", "", "up to 192 MiB"),
        (4, "0", "", "up to 192 MiB"),
        (4, "-1", "", "yes"),
        (4, None, "", "yes"),
        (4, "what", "", "yes"),
        (4, "9", "1", "yes"),
        (4, "-1", "0", "no"),
        # On aarch64, with pages of 16 and 64 KiB, huge pages have 32 and 512 MiB.
        (16, "-1", "", "no"),
        (64, "-1", "", "no"),
        (64, "9", "", "no"),
        (64, "-1", "1", "yes"),
    ],
)
def test_which_outputs_ask_for_huge_pages(tmp_path, monkeypatch, page_kib, order, asked, value):
    monkeypatch.setattr(mmap, "PAGESIZE", page_kib << 10)
    file = tmp_path / "page_reporting_order"
    if order is not None:
        file.write_text(order + "\n", "ascii")
    monkeypatch.setattr(toolchain_module, "_PAGE_REPORTING_ORDER", str(file))
    fact = _discover(NPU_CE_JIT_HUGE_PAGES=asked).huge_pages
    assert fact.value == value
    assert fact.where


def test_other_systems_are_told_that_only_the_reference_runs_there():
    facts = _discover(PATH="/usr/bin")
    facts = facts.replace(system=facts.system._replace(value="Darwin"))
    with pytest.raises(ToolchainError, match="Linux only; this is Darwin"):
        facts.require_build(lambda _: ())
