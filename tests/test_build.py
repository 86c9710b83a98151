# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from toy_package import EXPORT, NO_KERNELS, compiler_script, exit_code, fork, needs_compiler, toy

from npu_ce_jit import bootstrap
from npu_ce_jit.errors import BuildError, LoadError, ToolchainError
from npu_ce_jit.jit import build as build_module
from npu_ce_jit.jit import lock as lock_module
from npu_ce_jit.jit.build_log import compiler_failure
from npu_ce_jit.jit.loader import open_library
from npu_ce_jit.jit.lock import build_lock

pytestmark = needs_compiler


def _wait_for(path_exists, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not path_exists():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def _is_running(pid: str) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie's is empty
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_build_is_found_again_and_tells_what_it_was(tmp_path, caplog):
    caplog.set_level(logging.INFO, "npu_ce_jit")
    one = toy(tmp_path)
    artifact = one.build()
    assert one.find() == artifact
    assert ctypes.CDLL(str(artifact.library)).toy() == 42
    assert sorted(path.name for path in artifact.entry_dir.iterdir()) == [
        "build.log", "build.ninja", "libnpu_ce_jit_cpu.so", "manifest.json",
    ]  # fmt: skip
    manifest = artifact.manifest
    assert manifest["key"] == one.key.text
    assert manifest["compiler"]["command"] == one.toolchain.cxx.value
    assert any(character.isdigit() for character in manifest["compiler"]["version"])
    assert "-O2" in manifest["flags"]
    start, end = caplog.messages
    assert "building the CPU kernels" in start
    assert str(one.key_dir) in start
    assert "built after" in end


def test_a_built_entry_is_not_built_again(tmp_path):
    one = toy(tmp_path)
    assert one.build() == one.build()


@pytest.mark.parametrize("crowd", [2, 8])
def test_processes_that_start_at_once_build_once(tmp_path, crowd):
    log = tmp_path / "compiles"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, f'case "$*" in *-shared*) echo . >> {log};; esac; sleep 0.2'))

    def task():
        artifact = one.find() or one.build()
        assert ctypes.CDLL(str(artifact.library)).toy() == 42

    assert [exit_code(pid) for pid in [fork(task) for _ in range(crowd)]] == [0] * crowd
    assert log.read_text("utf-8").count(".") == 1
    assert len(list(one.key_dir.iterdir())) == 1


def test_a_killed_builder_leaves_the_next_one_working(tmp_path):
    pids = tmp_path / "pids"
    stop = tmp_path / "stop"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, f"[ -e {stop} ] || {{ echo $$ >> {pids}; exec sleep 60; }}"))
    builder = fork(one.build)
    _wait_for(lambda: pids.exists() and pids.read_text("utf-8").endswith("\n"))
    os.kill(builder, signal.SIGKILL)
    assert exit_code(builder) == -signal.SIGKILL
    stop.touch()
    start = time.monotonic()
    try:
        artifact = one.build()  # the orphaned compiler still runs, in a directory that is nobody else's
    finally:
        for pid in pids.read_text("utf-8").split():
            os.kill(int(pid), signal.SIGKILL)
    assert ctypes.CDLL(str(artifact.library)).toy() == 42
    assert time.monotonic() - start < 10


def test_a_wait_is_bounded_and_says_for_whom(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "npu_ce_jit")
    monkeypatch.setattr(lock_module, "_FIRST_MESSAGE_SECONDS", 0.1)
    one = toy(tmp_path, NPU_CE_JIT_LOCK_TIMEOUT="0.5")
    name = f"{one.store.roots[0].layout_dir}/{one.key.name}"
    with build_lock(name, one.settings, one.find):
        artifact = one.build()
    assert artifact.library.is_file()
    assert f"waiting for process {os.getpid()} on " in caplog.text
    assert "waited 0 s" in caplog.text


def test_one_who_waits_takes_what_the_other_has_built(tmp_path):
    one = toy(tmp_path)
    name = f"{one.store.roots[0].layout_dir}/{one.key.name}"
    with build_lock(name, one.settings, one.find):
        waiter = fork(lambda: one.build().manifest["host"] == "never built" or None)
        time.sleep(0.3)
        quick = toy(tmp_path, NPU_CE_JIT_LOCK_TIMEOUT="0")
        quick.build()
        assert exit_code(waiter) == 0, "the waiter returns while the lock is still held"
    assert len(list(one.key_dir.glob("e-*"))) == 1


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.EISDIR])
def test_any_trouble_with_the_lock_means_building_without_it(tmp_path, monkeypatch, caplog, error):
    def no_lock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(lock_module, "node_file", no_lock)
    assert toy(tmp_path).build().library.is_file()
    assert "building without a lock" in caplog.text


def test_a_source_that_does_not_compile_gives_the_compilers_words_the_command_and_the_log(tmp_path):
    one = toy(tmp_path, body="int toy() { return\n undeclared_name; }\n")
    with pytest.raises(BuildError) as caught:
        one.build()
    error = caught.value
    assert any("undeclared_name" in line for line in error.first_lines)
    assert "toy.cpp -o csrc/cpu/toy.o" in error.command
    assert "undeclared_name" in Path(error.log_path).read_text("utf-8")
    assert "doctor" in error.hint
    assert not list(one.key_dir.glob("[.e]*")), "nothing but the log is left"
    toy(tmp_path).build()  # mended: the next one builds


def test_a_symbol_that_nobody_defines_is_an_error_of_the_build(tmp_path):
    with pytest.raises(BuildError) as caught:
        toy(tmp_path, body="void nowhere(); void toy() { nowhere(); }\n").build()
    assert any("nowhere" in line for line in caught.value.first_lines)


def test_a_compiler_that_only_fails_is_told_too(tmp_path):
    one = toy(tmp_path, CXX=compiler_script(tmp_path, "echo licence expired; exit 3"))
    with pytest.raises(BuildError) as caught:
        one.build()
    assert caught.value.first_lines[0] == "licence expired"


def test_a_source_that_changes_under_the_compiler_is_not_published(tmp_path):
    header = tmp_path / "toy" / "csrc" / "cpu" / "toy.h"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, f"echo '#define TOY 1' > {header}"))
    with pytest.raises(BuildError, match="changed while it was compiled"):
        one.build()
    assert one.find() is None


@pytest.mark.parametrize("fact", ["cxx", "ninja", "cpu_isa"])
def test_what_is_missing_is_named_before_anything_is_written(tmp_path, fact):
    one = toy(tmp_path)
    absent = getattr(one.toolchain, fact)._replace(value=None, cure="Install it.")
    with pytest.raises(ToolchainError, match=f"No {absent.name.replace('+', '.')}.*Install it"):
        one._replace(toolchain=one.toolchain._replace(**{fact: absent})).build()
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_an_error_that_names_the_place(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(build_module, "write_private", full)
    one = toy(tmp_path)
    with pytest.raises(BuildError, match="No space left"):
        one.build()
    assert list(one.key_dir.iterdir()) == []


def test_an_interrupt_stops_the_compilers_and_leaves_nothing(tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, f"echo $$ >> {pids}; exec sleep 60"))

    def interrupted(progress, log):
        if pids.exists() and pids.read_text("utf-8").endswith("\n"):
            raise KeyboardInterrupt

    monkeypatch.setattr(build_module.BuildProgress, "show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.build()
    assert list(one.key_dir.iterdir()) == []
    _wait_for(lambda: not _is_running(pids.read_text("utf-8").split()[0]))


def test_truncated_and_changed_libraries_are_built_again(tmp_path):
    one = toy(tmp_path)
    size = one.build().library.stat().st_size
    for length in (0, 64, size // 2, size - 1):
        found = one.find()
        assert found is not None
        os.truncate(found.library, length)
        assert one.find() is None
        # A copy: to cut the library short next time while this process has it mapped would end the process.
        copy = shutil.copy(one.build().library, tmp_path / f"{length}.so")
        assert ctypes.CDLL(copy).toy() == 42


def test_a_library_that_the_linker_refuses_is_a_load_error_with_its_words(tmp_path):
    one = toy(tmp_path)
    artifact = one.build()
    artifact.library.write_bytes(b"no library")
    with pytest.raises(LoadError, match=r"invalid ELF header|file too short"):
        open_library(artifact, {})


def test_the_library_is_told_whether_to_use_huge_pages(tmp_path):
    body = f"""
        static int pages = -1;
        {NO_KERNELS}
        {EXPORT} void npu_ce_jit_set_huge_pages(int use) {{ pages = use; }}
        {EXPORT} int toy() {{ return pages; }}
    """
    artifact = toy(tmp_path, body=body).build()
    open_library(artifact, {"npu_ce_jit_set_huge_pages": False})
    assert ctypes.CDLL(str(artifact.library)).toy() == 0


def test_the_failing_command_is_told_from_ninjas_output():
    log = "[1/3] compile a\nFAILED: [code=1] b.o \ng++ -c b.cpp\nb.cpp: note\n" + "b.cpp:1: error: x\n" * 30
    command, lines = compiler_failure(log)
    assert command == "g++ -c b.cpp"
    assert lines == ("b.cpp:1: error: x",) * 20
    assert compiler_failure("ninja: fatal: no\n") == ("", ("ninja: fatal: no",))


def test_a_fork_while_another_thread_loads_leaves_the_child_able_to():
    holds, may_go = threading.Event(), threading.Event()

    def load():
        with bootstrap._lock:
            holds.set()
            may_go.wait(60)

    thread = threading.Thread(target=load)
    thread.start()
    holds.wait(60)
    try:
        child = fork(lambda: os._exit(0 if bootstrap._lock.acquire(blocking=False) else 9))
        assert exit_code(child) == 0
    finally:
        may_go.set()
        thread.join()


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["python", "-m", "npu_ce_jit", "clean"], True),
        (["python", "-X", "dev", "-m", "npu_ce_jit"], True),
        (["python", "/env/bin/npu-ce-jit", "verify"], True),
        (["python", "-m", "pytest", "npu-ce-jit"], False),
        (["python", "train.py", "-m", "model"], False),
        (["python"], False),
        ([], False),
    ],
)
def test_a_command_line_is_told_from_a_program(words, is_one):
    assert bootstrap.is_command_line(words) is is_one
