# SPDX-License-Identifier: Apache-2.0
"""Directories that killed builders leave are removed; those of living builders are not."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest
from toy_package import exit_code, fork

from npu_ce_jit.jit.cache.staging import dead_staging_dirs, staging_dir


def _killed_builder_s(key_dir: Path) -> Path:
    def task():
        with staging_dir(key_dir) as directory:
            (directory / "half-an-object.o").write_bytes(b"\0" * 100)
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(fork(task)) == -signal.SIGKILL
    (directory,) = key_dir.iterdir()
    return directory


def _age(directory: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(directory, (then, then))


def _stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)


@pytest.fixture
def key_dir(tmp_path) -> Path:
    directory = tmp_path / "v1" / "key"
    directory.mkdir(parents=True)
    return directory


def test_it_is_gone_at_the_end(key_dir):
    with staging_dir(key_dir) as directory:
        (directory / "object.o").touch()
    assert not list(key_dir.iterdir())


def test_a_dead_builder_s_is_found(key_dir, monkeypatch):
    directory = _killed_builder_s(key_dir)
    _stop_the_clock(monkeypatch)
    _age(directory, 4.5)
    assert not list(dead_staging_dirs(key_dir.parent)), "it is young: its builder may be about to lock it"
    _age(directory, 10)
    assert list(dead_staging_dirs(key_dir.parent)) == [directory]


@pytest.mark.parametrize("age", [1e6, 0, -1e6])
def test_a_living_builder_s_is_not(key_dir, age):
    with staging_dir(key_dir) as directory:
        _age(directory, age)
        assert not list(dead_staging_dirs(key_dir.parent))


@pytest.mark.parametrize("has_file", [True, False])
def test_a_dead_builder_s_is_found_after_the_clock_was_set_back(key_dir, has_file, monkeypatch):
    directory = _killed_builder_s(key_dir)
    _stop_the_clock(monkeypatch)
    if not has_file:
        (directory / ".alive").unlink()
    _age(directory, -3)
    assert not list(dead_staging_dirs(key_dir.parent)), "it is young by another machine's clock"
    _age(directory, -1e6)
    assert list(dead_staging_dirs(key_dir.parent)) == [directory]


def test_one_without_its_file_is_of_a_builder_that_died_at_once(key_dir):
    directory = _killed_builder_s(key_dir)
    (directory / ".alive").unlink()
    _age(directory, 10)
    assert list(dead_staging_dirs(key_dir.parent)) == [directory]


def test_without_locks_only_age_tells(key_dir, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with staging_dir(key_dir) as directory:
        _age(directory, 3600)
        assert not list(dead_staging_dirs(key_dir.parent))
        _age(directory, 100_000)
        assert list(dead_staging_dirs(key_dir.parent)) == [directory]
