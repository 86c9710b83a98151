# SPDX-License-Identifier: Apache-2.0
"""Where the cache may be, and what happens if a place refuses, is full, or is read-only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from toy_package import Toy, compiler_script, needs_compiler, toy

from npu_ce_jit.errors import BuildError, LoadError
from npu_ce_jit.jit.cache.entry import _refused, knows, reject, remember
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.jit.loader import load_or_build

pytestmark = needs_compiler


def _prebuilt(tmp_path) -> tuple[Toy, Path]:
    """A toy without a cache of its own, and a prebuilt entry for it in another directory."""
    prebuilt = tmp_path / "prebuilt"
    built = toy(tmp_path, NPU_CE_JIT_CACHE_DIR=str(prebuilt)).build()
    one = toy(tmp_path, NPU_CE_JIT_PREBUILT_DIR=str(prebuilt))
    return one, built.entry_dir


def _contents(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


def test_what_others_have_built_is_used_and_left_alone(tmp_path):
    one, entry_dir = _prebuilt(tmp_path)
    before = _contents(tmp_path / "prebuilt")
    found = one.find()
    assert found is not None
    assert found.entry_dir == entry_dir
    assert one.build().entry_dir == entry_dir
    assert _contents(tmp_path / "prebuilt") == before
    assert not (tmp_path / "cache").exists()


def test_what_is_noted_on_a_prebuilt_entry_stands_in_one_s_own_cache(tmp_path):
    one, entry_dir = _prebuilt(tmp_path)
    before = _contents(tmp_path / "prebuilt")
    artifact = one.find()
    assert artifact is not None
    remember(artifact, "passed")
    assert knows(artifact, "passed")
    reject(artifact, "it computes wrongly")
    assert one.find() is None
    _refused.clear()  # as in a new process, which knows only what was written
    assert one.find() is None
    assert entry_dir.is_dir()
    assert _contents(tmp_path / "prebuilt") == before


def test_a_damaged_prebuilt_entry_is_told_left_alone_and_built_elsewhere(tmp_path, caplog):
    one, entry_dir = _prebuilt(tmp_path)
    os.truncate(entry_dir / "libnpu_ce_jit_cpu.so", 100)
    before = _contents(tmp_path / "prebuilt")
    artifact = one.build()
    assert artifact.entry_dir.is_relative_to(tmp_path / "cache")
    assert one.find() == artifact
    assert f"not used: {entry_dir}: " in caplog.text
    assert _contents(tmp_path / "prebuilt") == before


def test_one_s_own_build_comes_before_what_is_prebuilt(tmp_path):
    one, _ = _prebuilt(tmp_path)
    shutil.copytree(tmp_path / "prebuilt", tmp_path / "cache")
    found = one.find()
    assert found is not None
    assert found.entry_dir.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("full", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_sends_the_build_to_the_next_root(tmp_path, full, caplog):
    caplog.set_level("INFO", "npu_ce_jit")
    refuse = f'case "$PWD" in */cache/*) echo "fatal error: cannot write: {full}" >&2; exit 1;; esac'
    one = toy(tmp_path, CXX=compiler_script(tmp_path, refuse))
    artifact = one.build()
    assert artifact.entry_dir.is_relative_to(tmp_path / f"npu_ce_jit-{os.getuid()}")
    assert one.find() == artifact
    assert "NPU_CE_JIT_CACHE_DIR: [Errno 28] No space left on device" in caplog.text


def test_a_root_that_is_mounted_noexec_is_passed_over(tmp_path, monkeypatch):
    real = os.statvfs

    def statvfs(path):
        status = real(path)
        if not Path(path).is_relative_to(tmp_path / "cache"):
            return status
        return os.statvfs_result([*status[:8], status.f_flag | os.ST_NOEXEC, *status[9:]])

    monkeypatch.setattr(os, "statvfs", statvfs)
    one = toy(tmp_path)
    assert one.build().entry_dir.is_relative_to(tmp_path / f"npu_ce_jit-{os.getuid()}")
    ((_, refusal), (_, no_refusal)) = one.store.examine()
    assert refusal is not None
    assert "noexec" in str(refusal)
    assert no_refusal is None


def test_a_loop_of_links_in_the_place_of_a_root_is_passed_over(tmp_path):
    (tmp_path / "cache").symlink_to(tmp_path / "cache")
    assert toy(tmp_path).build().entry_dir.is_relative_to(tmp_path / f"npu_ce_jit-{os.getuid()}")


def _unloadable(tmp_path, **variables: str) -> Toy:
    """A toy whose library needs another one, in `needed/`, which is removed before the toy's is loaded."""
    needed = tmp_path / "needed"
    needed.mkdir()
    source = needed / "needed.cpp"
    source.write_text("int needed() { return 42; }\n", "utf-8")
    link = f'g++ -shared -fPIC {source} -o {needed}/libneeded.so; set -- "$@"; case "$*" in *-shared*) set -- "$@" '
    link += f"-Wl,--no-as-needed {needed}/libneeded.so;; esac"
    return toy(tmp_path, CXX=compiler_script(tmp_path, link), **variables)


def _obtain(one: Toy) -> Path:
    artifact = load_or_build(one.target, one.settings, one.toolchain, may_build=True)
    assert artifact is not None
    return artifact.entry_dir


@pytest.mark.parametrize("read_only", [False, True])
def test_a_library_that_does_not_load_here_is_built_anew_and_stays_for_others(tmp_path, read_only, caplog):
    variable = "NPU_CE_JIT_PREBUILT_DIR" if read_only else "NPU_CE_JIT_CACHE_DIR"
    foreign = _unloadable(tmp_path, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "theirs")).build()
    shutil.rmtree(tmp_path / "needed")
    (tmp_path / "cxx").write_text('#!/bin/sh\nexec g++ "$@"\n', "utf-8")
    one = toy(tmp_path, CXX=str(tmp_path / "cxx"), **{variable: str(tmp_path / "theirs")})
    before = _contents(tmp_path / "theirs")
    entry_dir = _obtain(one)
    assert not read_only or _contents(tmp_path / "theirs") == before
    assert entry_dir != foreign.entry_dir
    assert foreign.library.is_file()
    assert "libneeded.so: cannot open shared object file" in caplog.text
    caplog.clear()
    assert _obtain(one) == entry_dir
    assert not caplog.records, "neither loaded nor reported again"


def test_a_library_that_never_loads_is_an_error_and_no_loop(tmp_path):
    one = _unloadable(tmp_path)
    script = (tmp_path / "cxx").read_text("utf-8")
    (tmp_path / "cxx").write_text(script.replace("exec ", f"trap 'rm -f {tmp_path}/needed/*.so' 0; "), "utf-8")
    with pytest.raises(LoadError, match=r"libneeded\.so: cannot open shared object file"):
        _obtain(one)


def test_with_every_root_refusing_each_says_why(tmp_path):
    (tmp_path / "file").touch()
    one = toy(
        tmp_path,
        NPU_CE_JIT_CACHE_DIR=str(tmp_path / "file"),
        XDG_CACHE_HOME=str(tmp_path / "file/x"),
        TMPDIR="/proc/self",
    )
    with pytest.raises(BuildError) as caught:
        one._replace(store=Store.of(one.settings)).build()
    for origin in ("NPU_CE_JIT_CACHE_DIR: ", "XDG_CACHE_HOME: ", "TMPDIR: "):
        assert origin in caught.value.fact
