# SPDX-License-Identifier: Apache-2.0
"""A cache on a disk that is full, over quota, read-only or noexec. The disks are real mounts that only a child sees."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest
from places import in_own_mounts, make_read_only, mount_tmpfs, needs_mounts, obey_permissions
from toy_package import Toy, compiler_script, exit_code, fork, needs_compiler, toy, write_npu_sources

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.cache.key import cache_key
from npu_ce_jit.jit.loader import load_or_build
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.targets import npu_target

pytestmark = needs_compiler


def _load(one: Toy) -> Path:
    """Loads the library, and returns the directory of its entry."""
    artifact = load_or_build(one.target, one.settings, one.toolchain, may_build=True)
    assert artifact is not None
    assert ctypes.CDLL(str(artifact.library)).toy() == 42
    return artifact.entry_dir


def _next_root(tmp_path: Path) -> Path:
    return tmp_path / f"npu_ce_jit-{os.getuid()}"


def _fill(directory: Path) -> str:
    """A shell line that fills the disk of `directory` to the last byte."""
    return f"cat /dev/zero > {directory}/filler 2>/dev/null"


@needs_mounts
@pytest.mark.parametrize("when", ["before", "before the first file", "compiling", "linking", "publishing"])
def test_a_disk_that_fills_up_at_any_time_sends_the_build_to_the_next_root(tmp_path, when):
    disk = tmp_path / "cache"
    lines = {
        "compiling": f'case "$PWD $*" in {disk}/*-c*) {_fill(disk)};; esac',
        "linking": f'case "$PWD $*" in {disk}/*-shared*) {_fill(disk)};; esac',
        "publishing": f'case "$PWD $*" in {disk}/*-shared*) g++ "$@" && {_fill(disk)}; exit;; esac',
    }
    one = toy(tmp_path, CXX=compiler_script(tmp_path, lines.get(when, "")))

    def task():
        mount_tmpfs(disk, "nr_inodes=2" if when == "before the first file" else "size=2m")
        if when == "before":
            os.system(_fill(disk))
        entry_dir = _load(one)
        assert entry_dir.is_relative_to(_next_root(tmp_path))
        assert not [path for path in disk.rglob("*") if path.name.startswith((".b-", "e-"))], "nothing half is left"
        assert _load(one) == entry_dir, "which is found there"

    in_own_mounts(task)


def test_a_disk_that_is_full_for_bisheng_sends_the_npu_s_build_to_the_next_root_too(tmp_path):
    write_npu_sources(tmp_path / "toy")
    bisheng = tmp_path / "bisheng"
    refuse = f"case $PWD in {tmp_path}/cache/*) echo error: No space left on device;; *) echo error: no licence;; esac"
    bisheng.write_text(f"#!/bin/sh\n{refuse}\nexit 1\n", "utf-8")
    bisheng.chmod(0o755)
    one = toy(tmp_path)
    values = {"bisheng": str(bisheng), "torch_npu_version": "2.13.0", "torch_npu_dir": "/t", "cann_home": str(tmp_path)}
    values["npu_architecture"] = "dav-2201"
    facts = {name: getattr(one.toolchain, name)._replace(value=value) for name, value in values.items()}
    toolchain = one.toolchain.replace(**facts)
    target = npu_target(one.settings, toolchain, Sources.of(tmp_path / "toy"))
    with pytest.raises(BuildError) as caught:
        one._replace(target=target, toolchain=toolchain, key=cache_key(target)).build()
    assert "no licence" in caught.value.first_lines[0]
    assert Path(caught.value.log_path).is_relative_to(_next_root(tmp_path))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["mkdir", "open", "rename", "fsync"])
def test_any_refusal_of_the_kernel_sends_the_build_to_the_next_root(tmp_path, monkeypatch, caplog, call, number):
    caplog.set_level("INFO", "npu_ce_jit")
    one = toy(tmp_path)
    real = getattr(os, call)

    def refuse(path, *arguments, **options):
        place = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        if str(place).startswith(f"{tmp_path}/cache"):
            raise OSError(number, os.strerror(number), place)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, call, refuse)
    assert one.build().entry_dir.is_relative_to(_next_root(tmp_path))
    assert f"NPU_CE_JIT_CACHE_DIR: [Errno {number}] {os.strerror(number)}" in caplog.text


def test_a_root_without_permission_to_write_is_passed_over(tmp_path):
    one = toy(tmp_path)
    (tmp_path / "cache").mkdir(mode=0o555)

    def task():
        obey_permissions()
        assert _load(one).is_relative_to(_next_root(tmp_path))

    assert exit_code(fork(task)) == 0


@needs_mounts
def test_a_root_that_is_mounted_noexec_is_passed_over(tmp_path):
    one = toy(tmp_path)

    def task():
        mount_tmpfs(tmp_path / "cache", noexec=True)
        assert _load(one).is_relative_to(_next_root(tmp_path))
        ((_, refusal), (_, no_refusal)) = one.store.examine()
        assert "noexec" in str(refusal)
        assert no_refusal is None

    in_own_mounts(task)


@needs_mounts
@pytest.mark.parametrize("state", ["whole", "damaged", "empty"])
def test_a_root_on_a_read_only_disk_is_read_and_where_it_does_not_serve_the_next_is_used(tmp_path, state):
    one = toy(tmp_path)

    def task():
        mount_tmpfs(tmp_path / "cache")
        if state != "empty":
            artifact = one.build()
            if state == "damaged":
                os.truncate(artifact.library, 100)
        make_read_only(tmp_path / "cache")
        expected = tmp_path / "cache" if state == "whole" else _next_root(tmp_path)
        for _ in range(2):
            assert _load(one).is_relative_to(expected)

    in_own_mounts(task)


@needs_mounts
def test_a_temporary_directory_on_another_disk_is_never_renamed_from(tmp_path):
    one = toy(tmp_path, TMPDIR=str(tmp_path / "other"))

    def task():
        mount_tmpfs(tmp_path / "other")
        assert _load(one).is_relative_to(tmp_path / "cache")
        assert list((tmp_path / "other").iterdir()) == []

    in_own_mounts(task)
