# SPDX-License-Identifier: Apache-2.0
"""Parses imports and #includes, and fails on an edge that docs/design.md section 1 does not have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import npu_ce_jit
from npu_ce_jit.jit.sources import Sources

PACKAGE_DIR = Path(npu_ce_jit.__file__).parent
MODULES = sorted(PACKAGE_DIR.rglob("*.py"))

# Which parts of the package a part may import. "jit" and "op" stand for all modules of the folder.
ALLOWED = {
    "errors": set(),
    "_version": set(),
    "log": set(),
    "settings": {"errors"},
    "jit": {"jit", "settings", "errors", "_version"},
    "chips": {"errors"},
    "op": {"op", "chips", "errors", "_version"},
    "bootstrap": {"jit", "op", "settings", "errors", "log"},
    "doctor": {"bootstrap", "console", "report", "jit", "devices", "settings", "errors", "_version"},
    "measure": set(),
    "devices": {"errors"},
    "parallel": {"op"},
    "contestants": {"op"},
    "cells": {"contestants", "measure"},
    "board": {"board", "bootstrap", "cells", "chips", "contestants", "devices", "jit", "errors", "_version"},
    "bench": {"bootstrap", "cells", "contestants", "devices", "errors", "_version"},
    "console": set(),
    "cache_commands": {"bootstrap", "console", "chips", "jit", "errors"},
    "redirected_calls": {"bootstrap", "op"},
    "switch": {"switch", "redirected_calls", "op", "log"},
    "report": {"bootstrap", "console", "jit", "switch", "_version"},
    "demo": {"bootstrap", "op", "measure", "errors"},
    "cli": {
        "bootstrap", "console", "report", "doctor", "cache_commands", "bench", "board", "demo", "jit", "errors",
        "_version",
    },
    "__main__": {"cli"},
    "fake_npu": {"errors"},
    "notebook": {"bootstrap", "report", "errors"},
    "experiment": {"bootstrap", "report", "jit", "op", "errors"},
    "__init__": {"bootstrap", "notebook", "experiment", "fake_npu", "switch", "op", "errors", "_version"},
}  # fmt: skip
TORCH_HEADERS = re.compile(r"<(?:torch|ATen|c10|caffe2)/|torch_npu")


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module == "npu_ce_jit":
                yield from (f"npu_ce_jit.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def _own_part(file: Path) -> str:
    return file.relative_to(PACKAGE_DIR).with_suffix("").parts[0]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(PACKAGE_DIR).as_posix())
def test_a_module_imports_only_what_its_part_may(file):
    part = _own_part(file)
    assert part in ALLOWED, "a new part of the package needs its line in ALLOWED and in docs/design.md"
    for module in _imports(file):
        if module.split(".")[0] == "npu_ce_jit":
            assert _part(module) in ALLOWED[part], f"{part} must not import {module}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(PACKAGE_DIR).as_posix())
def test_only_the_settings_read_the_environment(file):
    reads = re.findall(
        r"\bos\.(?:environ|getenv)\b|\bfrom os import\b.*\b(?:environ|getenv)\b", file.read_text("utf-8")
    )
    if file.name == "bootstrap.py":  # hands it to Settings.from_env
        assert reads == ["os.environ"]
    else:
        assert reads == []


def test_one_module_knows_the_library_that_colours():
    users = {_own_part(file) for file in MODULES for module in _imports(file) if module.split(".")[0] == "rich"}
    assert users == {"console"}


def test_nothing_of_cross_entropy_is_known_to_the_jit():
    for file in (PACKAGE_DIR / "jit").glob("*.py"):
        assert not re.search(r"softmax|logit|label|smoothing|ignore_index", file.read_text("utf-8")), file


def test_cpu_kernels_and_npu_kernels_include_no_torch_header():
    sources = Sources.installed()
    for name in sources.names:
        if name.startswith(("csrc/cpu/", "ascendc/")):
            text = (sources.root_dir / name).read_text("utf-8")
            for include in re.findall(r"^\s*#\s*include\s*(.+)$", text, re.MULTILINE):
                assert not TORCH_HEADERS.search(include), f"{name} includes {include}"


def test_the_cpu_library_includes_nothing_that_its_key_leaves_out():
    sources = Sources.installed()
    for name in sources.cpu.names:
        text = (sources.root_dir / name).read_text("utf-8")
        assert not re.search(r'#\s*include\s*".*(?:npu/|ascendc/|_plan\.h)', text), name


def test_the_heavy_torch_headers_are_included_nowhere():
    heavy = re.compile(r"#\s*include\s*<(?:torch/(?:extension|library|all|torch)\.h|ATen/|torch_npu/)")
    sources = Sources.installed()
    for name in sources.names:
        assert not heavy.search((sources.root_dir / name).read_text("utf-8")), name
