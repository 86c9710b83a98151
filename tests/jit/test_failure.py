# SPDX-License-Identifier: Apache-2.0
"""How processes on one node share the failure of a build."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
from toy_package import Toy, compiler_script, exit_code, fork, needs_compiler, toy, wait_until

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.build import failure, node
from npu_ce_jit.jit.build.node import node_file

pytestmark = needs_compiler
ERROR = BuildError("It did not compile.", "Mend it.", "g++ toy.cpp", ("toy.cpp:1: error: no", "and more"), "/log")


def _broken(tmp_path, compiles) -> Toy:
    return toy(tmp_path, "int broken(\n", CXX=compiler_script(tmp_path, f"echo . >> {compiles}; sleep 0.5"))


def test_all_who_wait_get_the_compilers_words_from_one_compile(tmp_path):
    compiles, all_are_there = tmp_path / "compiles", tmp_path / "all-are-there"
    one = _broken(tmp_path, compiles)

    def task():
        wait_until(all_are_there.exists)  # a process that starts after the failure builds again
        with pytest.raises(BuildError) as caught:
            one.build()
        (tmp_path / f"said-{os.getpid()}").write_text(str(caught.value), "utf-8")

    children = [fork(task) for _ in range(6)]
    all_are_there.touch()
    assert [exit_code(pid) for pid in children] == [0] * 6
    said = {file.read_text("utf-8") for file in tmp_path.glob("said-*")}
    assert len(list(tmp_path.glob("said-*"))) == 6
    assert len(said) == 1
    assert "toy.cpp:" in said.pop()
    assert compiles.read_text("utf-8").count(".") == 1


def test_a_process_that_starts_after_the_failure_builds_again(tmp_path):
    compiles = tmp_path / "compiles"
    one = _broken(tmp_path, compiles)

    def task():
        with pytest.raises(BuildError):
            one.build()

    for _ in range(2):
        assert exit_code(fork(task)) == 0
        time.sleep(0.05)  # start times of processes have a resolution of 10 ms
    assert compiles.read_text("utf-8").count(".") == 2


def test_sources_that_were_mended_meanwhile_are_built_at_once(tmp_path):
    """The process began before the failure, and would reuse it if the key were the same."""
    broken, begun = toy(tmp_path, "int broken(\n"), tmp_path / "begun"

    def task():
        wait_until(begun.exists)
        with pytest.raises(BuildError):
            broken.build()
        assert toy(tmp_path).build().library.is_file()

    child = fork(task)
    with pytest.raises(BuildError):
        broken.build()
    begun.touch()
    assert exit_code(child) == 0


def test_a_clock_that_is_set_makes_no_failure_old_or_new(tmp_path, monkeypatch):
    one = toy(tmp_path)
    assert _recorded_by_another(one) is not None
    for now in (time.time() - 1e6, time.time() + 1e6):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert failure.recorded_failure(_name(one), one.settings, one.toolchain) is not None


def test_who_failed_may_try_again_at_once(tmp_path):
    compiles = tmp_path / "compiles"
    one = _broken(tmp_path, compiles)
    for _ in range(2):
        with pytest.raises(BuildError):
            one.build()
    assert compiles.read_text("utf-8").count(".") == 2


def _name(one: Toy) -> str:
    return str(one.store.roots[0].path)


def _recorded_by_another(one: Toy, **changed: object) -> BuildError | None:
    failure.record_failure(ERROR, _name(one), one.settings, one.toolchain)
    file = node_file(one.settings, _name(one), ".failure")
    record = json.loads(file.read_text("utf-8")) | {"pid": 1} | changed
    file.write_text(json.dumps(record), "utf-8")
    return failure.recorded_failure(_name(one), one.settings, one.toolchain)


def test_a_record_holds_the_whole_error(tmp_path):
    recorded = _recorded_by_another(toy(tmp_path))
    assert recorded is not None
    assert recorded.args == ERROR.args


@pytest.mark.parametrize(
    "changed",
    [
        {"at": 0.0},
        {"at": 1e12},
        {"pid": "ours"},
        {"made by": "other tools"},
        {"error": "nonsense"},
        {"error": []},
        {"at": None},
    ],
    ids=str,
)
def test_a_record_that_is_not_about_us_is_not_believed(tmp_path, changed):
    assert _recorded_by_another(toy(tmp_path), **({"pid": os.getpid()} if "pid" in changed else changed)) is None


@pytest.mark.parametrize("how", ["group-writable", "no JSON", "a link", "gone"])
def test_a_record_that_others_could_have_written_is_not_believed(tmp_path, how):
    one = toy(tmp_path)
    assert _recorded_by_another(one) is not None
    file = node_file(one.settings, _name(one), ".failure")
    if how == "group-writable":
        file.chmod(0o660)
    elif how == "no JSON":
        file.write_bytes(b"\xff{")
    else:
        shutil.move(file, tmp_path / "elsewhere")
        if how == "a link":
            file.symlink_to(tmp_path / "elsewhere")
    assert failure.recorded_failure(_name(one), one.settings, one.toolchain) is None


def test_an_old_failure_is_no_news(tmp_path, monkeypatch):
    one = toy(tmp_path)
    assert _recorded_by_another(one) is not None
    now = failure._now()
    monkeypatch.setattr(failure, "_now", lambda: now + 61)
    assert failure.recorded_failure(_name(one), one.settings, one.toolchain) is None


def test_where_nothing_can_be_left_nothing_is_raised(tmp_path, monkeypatch):
    one = toy(tmp_path)

    def no_directory(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failure, "node_file", no_directory)
    failure.record_failure(ERROR, _name(one), one.settings, one.toolchain)
    assert failure.recorded_failure(_name(one), one.settings, one.toolchain) is None


def test_what_killed_processes_left_of_telling_is_used_up_by_the_next(tmp_path, monkeypatch):
    one = toy(tmp_path)
    monkeypatch.setattr(node, "_SHARED_MEMORY", tmp_path)
    for _ in range(2):
        with monkeypatch.context() as killed:
            killed.setattr(failure, "write_private", lambda path, content: path.write_text(content[:9], "utf-8"))
            killed.setattr(type(tmp_path), "rename", lambda *_: None)
            failure.record_failure(ERROR, "build", one.settings, one.toolchain)
    file = node_file(one.settings, "build", ".failure")
    assert [path.name for path in file.parent.iterdir()] == [f".{file.name}"]
    failure.record_failure(ERROR, "build", one.settings, one.toolchain)
    assert list(file.parent.iterdir()) == [file]
    assert json.loads(file.read_text("utf-8"))["pid"] == os.getpid()
