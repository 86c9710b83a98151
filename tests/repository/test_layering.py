# SPDX-License-Identifier: Apache-2.0
"""Imports and #includes: every edge is in the table of docs/design.md section 1, and there are no cycles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import npu_ce_jit
from npu_ce_jit.jit.sources import Sources

PACKAGE_DIR = Path(npu_ce_jit.__file__).parent
FILES = {
    file.relative_to(PACKAGE_DIR).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): file
    for file in sorted(PACKAGE_DIR.rglob("*.py"))
}  # by module, without the package's own name
FOLDERS = {".".join(file.parent.relative_to(PACKAGE_DIR).parts) for file in FILES.values()} - {""}

PAGE = PACKAGE_DIR.parent / "docs" / "design.md"
if not PAGE.is_file():
    pytest.skip("the package under test is installed, not a checkout", allow_module_level=True)
# part -> the other parts of the package that it may import. A part is a folder without subfolders, or a module of a
# folder that has some.
ALLOWED = {
    part: re.findall(r"`([\w.]+)`", others)
    for part, others in re.findall(
        r"^\| `([\w.]+)` \|([^|]*)\|$", PAGE.read_text("utf-8").partition("| part | imports |")[2], re.MULTILINE
    )
}
TORCH_HEADERS = re.compile(r"<(?:torch|ATen|c10|caffe2)/|torch_npu")


def _part(module: str) -> str:
    folder = module if module in FOLDERS else module.rpartition(".")[0]
    has_folders = any(other.startswith(f"{folder}.") for other in FOLDERS)
    return module if not folder or has_folders else folder


def _module(name: str) -> str:
    """The module that a dotted name below the package belongs to."""
    return name if name in FILES else name.rpartition(".")[0] or "__init__"


def _imports(file: Path) -> Iterator[str]:
    """Also imports inside functions, and those for type checkers only."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if (node.module or "").split(".")[0] == "npu_ce_jit":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def _own_imports(module: str) -> set[str]:
    """The package's modules that a module imports."""
    names = (name.partition(".")[2] for name in _imports(FILES[module]) if name.split(".")[0] == "npu_ce_jit")
    return {_module(name) for name in names} - {module}


def test_the_table_has_every_part():
    assert {_part(module) for module in FILES if module not in FOLDERS} == {*ALLOWED}


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_what_its_part_may(module):
    if _part(module) not in ALLOWED:
        assert not _own_imports(module), "the __init__ of a folder with folders in it imports nothing"
        return
    allowed = {_part(module), *ALLOWED[_part(module)]}
    assert {_part(other) for other in _own_imports(module)} <= allowed


def test_no_circle_of_modules_and_none_of_parts():
    for graph in (
        {module: _own_imports(module) for module in FILES if module != "__init__"},
        ALLOWED,
    ):
        TopologicalSorter(graph).prepare()  # raises CycleError if there is a cycle


def test_the_top_of_the_package_stays_small():
    assert sum("." not in module and module not in FOLDERS for module in FILES) <= 14


@pytest.mark.parametrize("module", FILES)
def test_only_the_settings_read_the_environment(module):
    text = FILES[module].read_text("utf-8")
    reads = re.findall(r"\bos\.(?:environ|getenv)\b|\bfrom os import\b.*\b(?:environ|getenv)\b", text)
    # bootstrap passes the environment to Settings.from_env.
    assert reads == (["os.environ"] if module == "bootstrap" else [])


def test_nothing_of_cross_entropy_is_known_to_the_jit():
    for file in (PACKAGE_DIR / "jit").rglob("*.py"):
        assert not re.search(r"softmax|logit|label|smoothing|ignore_index", file.read_text("utf-8")), file


def test_cpu_kernels_and_npu_kernels_include_no_torch_header():
    sources = Sources.installed()
    for name in sources.names:
        if name.startswith(("csrc/cpu/kernels/", "ascendc/")):
            text = (sources.root_dir / name).read_text("utf-8")
            for include in re.findall(r"^\s*#\s*include\s*(.+)$", text, re.MULTILINE):
                assert not TORCH_HEADERS.search(include), f"{name} includes {include}"


def test_the_cpu_library_includes_nothing_that_its_key_leaves_out():
    sources = Sources.installed()
    for name in sources.cpu.names:
        text = (sources.root_dir / name).read_text("utf-8")
        assert not re.search(r'#\s*include\s*".*(?:npu/|ascendc/)', text), name


def test_the_heavy_torch_headers_are_included_nowhere():
    heavy = re.compile(r"#\s*include\s*<(?:torch/(?:extension|library|all|torch)\.h|ATen/|torch_npu/)")
    sources = Sources.installed()
    for name in sources.names:
        if name == "csrc/glue/torch_compat.h":  # for older versions of torch, whose C ABI lacks functions
            continue
        assert not heavy.search((sources.root_dir / name).read_text("utf-8")), name
