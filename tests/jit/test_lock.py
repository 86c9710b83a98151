# SPDX-License-Identifier: Apache-2.0
"""Who builds on a node and who waits; no process waits for ever, or for a lock that cannot be taken."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from places import obey_permissions
from toy_package import Toy, compiler_script, exit_code, fork, needs_compiler, toy, wait_until

from npu_ce_jit.jit.build import lock as lock_module
from npu_ce_jit.jit.build import node
from npu_ce_jit.jit.build.lock import build_lock
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.settings import Settings

pytestmark = needs_compiler


def _name(one: Toy) -> str:
    return f"{one.store.roots[0].layout_dir}/{one.key.name}"


@pytest.mark.parametrize("crowd", [2, 64])
def test_processes_that_start_at_once_build_once(tmp_path, crowd):
    log = tmp_path / "compiles"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, f'case "$*" in *-shared*) echo . >> {log};; esac; sleep 0.2'))

    def task():
        artifact = one.find() or one.build()
        assert ctypes.CDLL(str(artifact.library)).toy() == 42

    assert [exit_code(pid) for pid in [fork(task) for _ in range(crowd)]] == [0] * crowd
    assert log.read_text("utf-8").count(".") == 1
    assert len(list(one.key_dir.iterdir())) == 1


def test_a_wait_is_bounded_and_says_for_whom(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "npu_ce_jit")
    monkeypatch.setattr(lock_module, "_FIRST_MESSAGE_SECONDS", 0.0)
    one = toy(tmp_path, NPU_CE_JIT_LOCK_TIMEOUT="0.5")
    start = time.monotonic()
    with build_lock(_name(one), one.settings, one.find):
        artifact = one.build()
    assert time.monotonic() - start < Settings().lock_timeout / 2
    assert artifact.library.is_file()
    assert f"waiting for process {os.getpid()} on " in caplog.text
    assert "waited 0 s" in caplog.text


def test_one_who_waits_takes_what_the_other_has_built(tmp_path):
    one = toy(tmp_path)
    with build_lock(_name(one), one.settings, one.find):
        waiter = fork(lambda: one.build().manifest["host"] == "never built" or None)
        time.sleep(0.3)
        quick = toy(tmp_path, NPU_CE_JIT_LOCK_TIMEOUT="0")
        quick.build()
        assert exit_code(waiter) == 0, "the waiter returns while the lock is still held"
    assert len(list(one.key_dir.glob("e-*"))) == 1


def test_who_cannot_see_what_the_other_has_published_builds_and_uses_its_own(tmp_path, monkeypatch):
    """On a network disk, a rename by another node, or one's own, may become visible only after a minute."""
    one = toy(tmp_path)
    other = one.build()
    monkeypatch.setattr(Store, "find", lambda store, key: None)
    own = one.build()
    assert own.entry_dir != other.entry_dir
    assert ctypes.CDLL(str(own.library)).toy() == 42


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_without_locks_means_building_without_one_and_leaves_none_behind(tmp_path, monkeypatch, caplog, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(node, "_SHARED_MEMORY", tmp_path)
    one = toy(tmp_path)

    def die():
        with build_lock(_name(one), one.settings, one.find):
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        assert exit_code(fork(die)) == -signal.SIGKILL
        assert one.build().library.is_file()
    assert f"building without a lock: [Errno {number}]" in caplog.text
    caplog.clear()
    with build_lock(_name(one), one.settings._replace(lock_timeout=0.0), lambda: None):
        assert not caplog.records, "the lock is free"


def _unwritable(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o555)


@pytest.mark.parametrize(
    "how",
    ["no place", "private directory unwritable", "private directory open to others", "a file", "a directory", "owner"],
)
def test_a_place_for_the_lock_that_cannot_be_used_means_building_without_it(tmp_path, monkeypatch, caplog, how):
    shared = tmp_path / "shm"
    builds = shared / f"npu_ce_jit-{os.getuid()}" / "builds"
    monkeypatch.setattr(node, "_SHARED_MEMORY", shared)
    one = toy(tmp_path)
    builds.mkdir(mode=0o700, parents=True)
    lock_file = node.node_file(one.settings, _name(one), ".lock")
    if how == "no place":
        monkeypatch.setattr(node, "_SHARED_MEMORY", tmp_path / "none")
        one = one._replace(settings=one.settings._replace(tmp_dir=tmp_path / "none"))
    elif how == "private directory unwritable":
        _unwritable(builds)
    elif how == "private directory open to others":
        builds.chmod(0o777)
    elif how == "a file":
        builds.rmdir()
        builds.touch()
    elif how == "a directory":
        lock_file.mkdir()
    else:
        lock_file.with_suffix(".owner").mkdir()

    def task():
        obey_permissions()
        caplog.clear()
        assert one.build().library.is_file()
        assert "building without a lock: " in caplog.text

    assert exit_code(fork(task)) == 0


def test_without_shared_memory_the_lock_is_in_the_temporary_directory(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(node, "_SHARED_MEMORY", tmp_path / "shm")
    _unwritable(tmp_path / "shm")

    def task():
        obey_permissions()
        toy(tmp_path).build()
        assert "without a lock" not in caplog.text

    assert exit_code(fork(task)) == 0
    assert list((tmp_path / f"npu_ce_jit-{os.getuid()}" / "builds").glob("*.lock"))


def test_who_waits_for_a_builder_that_is_killed_has_the_lock_before_any_time_is_out(tmp_path):
    one = toy(tmp_path)
    held, regained = tmp_path / "held", []

    def hold():
        with build_lock(_name(one), one.settings, lambda: None):
            held.touch()
            time.sleep(600)

    def wait():
        with build_lock(_name(one), one.settings, lambda: None):
            regained.append(time.monotonic())

    builder = fork(hold)
    wait_until(held.exists)
    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.5)
    assert not regained
    killed = time.monotonic()
    os.kill(builder, signal.SIGKILL)
    waiter.join()
    assert regained[0] - killed < one.settings.lock_timeout / 2, "it waited the whole time out"
    assert exit_code(builder) == -signal.SIGKILL


def test_one_of_many_who_wait_for_a_killed_builder_goes_on(tmp_path):
    held, regained = tmp_path / "held", tmp_path / "regained"
    one = toy(tmp_path)

    def hold():
        with build_lock(_name(one), one.settings, lambda: None):
            held.touch()
            time.sleep(600)

    def wait():
        with build_lock(_name(one), one.settings, lambda: regained.exists() or None) as found:
            if found is None:
                regained.write_text(str(time.monotonic()), "ascii")  # the clock of all processes of a machine

    builder = fork(hold)
    wait_until(held.exists)
    waiters = [fork(wait) for _ in range(8)]
    time.sleep(0.5)
    killed = time.monotonic()
    os.kill(builder, signal.SIGKILL)
    assert [exit_code(pid) for pid in waiters] == [0] * 8
    seconds = float(regained.read_text("ascii")) - killed
    assert seconds < one.settings.lock_timeout / 2, "it waited the whole time out"
    assert exit_code(builder) == -signal.SIGKILL
