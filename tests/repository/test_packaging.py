# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from toy_package import run_python

import npu_ce_jit
from npu_ce_jit.jit.sources import Sources

CHECKOUT = Path(npu_ce_jit.__file__).resolve().parents[1]

needs_checkout = pytest.mark.skipif(
    not (CHECKOUT / "pyproject.toml").is_file(), reason="the package under test is installed, not a checkout"
)
needs_hatchling = pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling to build")

SOURCES = """
import json
from npu_ce_jit.jit.sources import Sources
sources = Sources.installed()
print(json.dumps([str(sources.root_dir), sources.digests()]))
"""


def _build(kind: str, out_dir: Path) -> Path:
    """Calls the build backend as pip does, without build isolation."""
    out_dir.mkdir()
    code = f"import sys; from hatchling.build import build_{kind}; print(build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(out_dir)], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out_dir / done.stdout.split()[-1]


@needs_checkout
@needs_hatchling
def test_a_wheel_carries_the_sources_and_finds_them(tmp_path):
    wheel = _build("wheel", tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "npu_ce_jit" / "py.typed").is_file()
    out = run_python(tmp_path / "site", SOURCES, NPU_CE_JIT_BUILD="never", HOME=str(tmp_path)).stdout
    root_dir, files = json.loads(out)
    assert root_dir == str(tmp_path / "site" / "npu_ce_jit")
    assert [tuple(pair) for pair in files] == Sources.installed().digests()


@needs_checkout
@needs_hatchling
def test_an_editable_install_uses_the_checkout_and_copies_nothing(tmp_path):
    wheel = _build("editable", tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (pth,) = (name for name in names if name.endswith(".pth"))
        assert archive.read(pth).decode().strip() == str(CHECKOUT)
    assert not [name for name in names if name.endswith((".cpp", ".h", ".py"))]
    assert Sources.installed().root_dir == CHECKOUT


@needs_checkout
@needs_hatchling
def test_a_source_distribution_carries_what_a_wheel_needs(tmp_path):
    archive = _build("sdist", tmp_path / "dist")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (root_dir,) = (tmp_path / "unpacked").iterdir()
    assert Sources.of(root_dir).digests() == Sources.installed().digests()
    assert (root_dir / "tests" / "repository" / "test_packaging.py").is_file()


@needs_checkout
def test_the_pinned_versions_are_allowed_by_the_project():
    pins = (CHECKOUT / "requirements.lock").read_text("utf-8").splitlines()
    for name in ("torch==2.13.", "ninja==1.", "filelock=="):
        assert any(pin.startswith(name) for pin in pins), name
    assert not any("+" in pin or "://" in pin for pin in pins if not pin.startswith("#"))


def test_the_version_is_the_same_everywhere():
    from npu_ce_jit._version import __version__

    assert npu_ce_jit.__version__ == __version__
