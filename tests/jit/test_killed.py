# SPDX-License-Identifier: Apache-2.0
"""A builder that is killed or interrupted at any moment does no harm: the next one builds, and leftovers are
removed."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest
from toy_package import Toy, compiler_script, exit_code, fork, is_running, needs_compiler, toy, wait_until

from npu_ce_jit.jit.build import compile as build_module
from npu_ce_jit.jit.cache import entry, staging

pytestmark = needs_compiler


def _descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    return children + [one for child in children for one in _descendants(child)]


def _names(one: Toy) -> list[str]:
    """The names in the key's directory, each shortened to its prefix."""
    return sorted(path.name[:2] for path in one.key_dir.iterdir())


def _require_right(one: Toy) -> None:
    artifact = one.build()
    assert one.find() == artifact
    assert ctypes.CDLL(str(artifact.library)).toy() == 42


def test_a_compiler_that_outlives_its_killed_builder_writes_into_nothing_that_counts(tmp_path, monkeypatch):
    pid_file, stop = tmp_path / "pid", tmp_path / "stop"
    write = "for f in libnpu_ce_jit_cpu.so csrc/cpu/toy.o entry; do echo x >> $f; done; sleep 0.01"
    lines = f"[ -e {stop} ] || {{ echo $$ > {pid_file}; for i in $(seq 30000); do {write}; done; }} 2>/dev/null"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, lines))
    monkeypatch.setattr(staging, "_YOUNG_SECONDS", 3600.0)
    builder = fork(one.build)
    wait_until(lambda: pid_file.exists() and pid_file.read_text("ascii").endswith("\n"))
    os.kill(builder, signal.SIGKILL)
    assert exit_code(builder) == -signal.SIGKILL
    stop.touch()
    orphan = int(pid_file.read_text("ascii"))
    try:
        _require_right(one)
        assert is_running(orphan)
        assert _names(one) == [".b", "e-"], "its directory is young"
        monkeypatch.setattr(staging, "_YOUNG_SECONDS", 0.0)
        build_module._remove_leftovers(one.store.roots[0])
    finally:
        os.kill(orphan, signal.SIGKILL)
    wait_until(lambda: not is_running(orphan))
    build_module._remove_leftovers(one.store.roots[0])
    assert _names(one) == ["e-"]


def test_a_builder_that_is_killed_with_all_it_started_in_the_middle_of_linking_leaves_nothing_that_is_found(
    tmp_path, monkeypatch
):
    linking, stop = tmp_path / "linking", tmp_path / "stop"
    monkeypatch.setattr(staging, "_YOUNG_SECONDS", 3600.0)
    half = f'[ -e {stop} ] || case "$*" in *-shared*) head -c 5000 /dev/zero > libnpu_ce_jit_cpu.so; touch {linking};'
    one = toy(tmp_path, CXX=compiler_script(tmp_path, f"{half} sleep 300;; esac"))
    builder = fork(one.build)
    wait_until(linking.exists)
    started = _descendants(builder)
    assert started, "ninja and the linker"
    for pid in (builder, *started):
        os.kill(pid, signal.SIGKILL)
    assert exit_code(builder) == -signal.SIGKILL
    stop.touch()
    assert one.find() is None
    _require_right(one)
    assert _names(one) == [".b", "e-"]


@pytest.mark.parametrize("step", ["write_private", "_sync", "make_visible", "rename"])
def test_a_builder_that_is_killed_while_it_publishes_leaves_all_or_nothing(tmp_path, monkeypatch, step):
    one = toy(tmp_path)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        if step == "rename":  # the last step, which publishes the entry
            real = Path.rename
            patched.setattr(Path, "rename", lambda path, to: die() if Path(to).name[:2] == "e-" else real(path, to))
        else:
            patched.setattr(entry, step, die)
        assert exit_code(fork(one.build)) == -signal.SIGKILL
    assert _names(one) == [".b"]
    assert one.find() is None
    _require_right(one)


def test_the_next_build_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_YOUNG_SECONDS", 0.0)
    started, stop = tmp_path / "started", tmp_path / "stop"
    slow = toy(tmp_path, CXX=compiler_script(tmp_path, f"touch {started}; [ -e {stop} ] || exec sleep 300"))
    builder = fork(slow.build)
    wait_until(started.exists)
    for pid in (builder, *_descendants(builder)):  # the compiler would otherwise survive, as in the tests above
        os.kill(pid, signal.SIGKILL)
    assert exit_code(builder) == -signal.SIGKILL
    stop.touch()
    assert _names(slow) == [".b"]
    slow.build()
    assert _names(slow) == ["e-"]


def test_an_interrupt_stops_the_compilers_and_leaves_nothing_and_the_next_call_builds(tmp_path, monkeypatch):
    pids, stop = tmp_path / "pids", tmp_path / "stop"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, f"[ -e {stop} ] || {{ echo $$ >> {pids}; exec sleep 300; }}"))

    def interrupted(progress, log):
        if pids.exists() and pids.read_text("utf-8").endswith("\n"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build_module.BuildProgress, "show", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.build()
    assert list(one.key_dir.iterdir()) == []
    wait_until(lambda: not is_running(int(pids.read_text("utf-8").split()[0])))
    stop.touch()
    _require_right(one)


def test_control_c_at_a_terminal_reaches_the_builder_which_stops_its_compilers(tmp_path):
    """The signal goes to the whole process group, as from a keyboard; the child has a group of its own here."""
    pids = tmp_path / "pids"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, f"echo $$ >> {pids}; exec sleep 300"))

    def task():
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            one.build()
        assert list(one.key_dir.iterdir()) == []

    builder = fork(task)
    wait_until(lambda: pids.exists() and pids.read_text("utf-8").endswith("\n"))
    start = time.monotonic()
    os.killpg(builder, signal.SIGINT)
    assert exit_code(builder) == 0
    assert time.monotonic() - start < 200, "the compilers were not waited for"
    wait_until(lambda: not is_running(int(pids.read_text("utf-8").split()[0])))
