# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a build: its place, reason, progress and end; on a terminal, in a notebook, in a log."""

from __future__ import annotations

import io
import logging
import os
import sys
import types

import pytest
from terminal import terminal
from toy_package import (
    compiler_script,
    copy_package,
    exit_code,
    fork,
    needs_compiler,
    run_python_from_the_start,
    toy,
    wait_until,
)

from npu_ce_jit.jit.build import lock as lock_module
from npu_ce_jit.jit.build import progress as progress_module
from npu_ce_jit.jit.build.cache_miss import reason
from npu_ce_jit.jit.build.lock import build_lock
from npu_ce_jit.jit.build.progress import BuildProgress
from npu_ce_jit.log import set_up_log


def _screen(text: str) -> list[str]:
    """The visible lines: after a carriage return, text overwrites the line."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return [line for line in lines if line]


class OutStream(io.StringIO):
    """Like the stream of a notebook's kernel: no terminal and no descriptor; only its class identifies it."""

    __module__ = "ipykernel.iostream"

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


@pytest.fixture
def stderr(monkeypatch):
    """Replaces standard error by a stream, with this package's own handler only, as in a program.

    The clock advances one second at each query.
    """
    clock = iter(range(10_000))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    logger = logging.getLogger("npu_ce_jit")

    def put(stream, level=logging.INFO):
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest adds its own when a test begins
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logging.NOTSET)
        monkeypatch.setattr(sys, "stderr", stream)
        set_up_log(level)
        return stream

    yield put
    logger.setLevel(logging.INFO)  # clears the cache of isEnabledFor


def _build(error: type[BaseException] | None = None) -> None:
    try:
        with BuildProgress("the toy kernels", "/cache", "somebody wants them") as progress:
            for step in range(1, 4):
                for _ in range(12):
                    progress.show("".join(f"[{n}/3] compile {n}.cpp\n" for n in range(1, step + 1)))
            if error:
                raise error
    except (KeyboardInterrupt, OSError):
        pass


START = "npu_ce_jit: building the toy kernels in /cache: somebody wants them"


@pytest.mark.parametrize(
    ("error", "said"),
    [(None, "built in "), (KeyboardInterrupt, "interrupted after "), (OSError, "the build failed after ")],
)
def test_in_a_notebook_one_line_moves_and_the_outcome_takes_its_place(stderr, error, said):
    stream = stderr(OutStream())
    _build(error)
    text = stream.getvalue()
    assert all(f"\rnpu_ce_jit: [{n}/3] " in text for n in (1, 2, 3))
    assert "\x1b" not in text, "a notebook shows no escape sequence that moves the cursor"
    start, end = _screen(text)
    assert start == START
    assert end.startswith(f"npu_ce_jit: {said}")
    if error is KeyboardInterrupt:
        assert end.endswith("the compilers are stopped, the next import or call builds")


def test_what_a_person_should_know_of_takes_the_moving_line_s_place(stderr):
    stream = stderr(OutStream())
    with BuildProgress("the toy kernels", "/cache", "somebody wants them") as progress:
        progress.show("[1/3] compile a.cpp\n")
        progress.say("one way failed")
        progress.show("[2/3] compile a.cpp\n")
    start, said, end = _screen(stream.getvalue())
    assert (start, said) == (START, "npu_ce_jit: one way failed")
    assert end.startswith("npu_ce_jit: built in ")


def test_a_cell_that_runs_again_shows_the_same_and_nothing_of_the_last_run(stderr):
    for _ in range(2):
        stream = stderr(OutStream())
        _build()
        assert [line.partition(" in ")[0] for line in _screen(stream.getvalue())] == [
            "npu_ce_jit: building the toy kernels", "npu_ce_jit: built"
        ]  # fmt: skip


def test_on_a_terminal_the_same_line_moves(stderr):
    with terminal() as (descriptor, screen), os.fdopen(os.dup(descriptor), "w") as stream:
        stderr(stream)
        _build()
    assert "\rnpu_ce_jit: [3/3] " in screen.text
    assert len(_screen(screen.text)) == 2


def test_in_a_log_there_is_a_line_after_each_ten_seconds_with_how_far_it_is(stderr):
    stream = stderr(io.StringIO())
    _build()
    text = stream.getvalue()
    assert "\r" not in text
    start, *beats, end = text.splitlines()
    assert start == START
    assert end.startswith("npu_ce_jit: built in ")
    assert [beat.rpartition("] ")[0] for beat in beats] == [f"npu_ce_jit: still building: [{n}/3" for n in (1, 2, 3)]
    ages = [int(beat.split()[-2]) for beat in beats]
    assert all(later - earlier >= 10 for earlier, later in zip([0, *ages], ages, strict=False))


def test_at_another_level_or_with_the_programs_own_handlers_nothing_moves(stderr, monkeypatch):
    stream = stderr(OutStream(), logging.WARNING)
    _build()
    assert stream.getvalue() == ""
    logging.getLogger("npu_ce_jit").setLevel(logging.INFO)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    _build()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("stream", [None, "closed"])
def test_where_nobody_listens_the_build_goes_on(stderr, stream):
    if stream == "closed":
        stream = OutStream()
        stream.close()
    stderr(stream)
    _build()


def _key(text: str) -> types.SimpleNamespace:
    """A key that differs from the built one's."""
    return types.SimpleNamespace(text=text, name="other")


@needs_compiler
def test_the_reason_is_what_changed_or_what_lies_there_instead(tmp_path):
    one = toy(tmp_path)
    assert reason(one.key, one.store) == "nothing of it was built here before"
    artifact = one.build()
    changed = toy(tmp_path, CXX="g++")
    assert reason(changed.key, one.store) == "since the last build CXX changed from default to g++"
    other = _key(one.key.text.replace("torch: ", "torch: 9"))
    assert reason(other, one.store).startswith("since the last build torch changed from 2")
    of_another_target = _key("target: npu\n")
    assert reason(of_another_target, one.store) == "nothing of it was built here before"
    artifact.entry_dir.joinpath("manifest.json").write_text("{}", "utf-8")
    assert reason(one.key, one.store) == "what the cache holds cannot be used here"
    assert one.find() is None
    assert reason(one.key, one.store) == "what the cache held was damaged"


@needs_compiler
def test_sources_that_changed_are_named_up_to_three(tmp_path):
    one = toy(tmp_path)
    one.build()
    source = "source csrc/cpu/toy.cpp: "
    other = _key(one.key.text.replace(source, f"{source}0"))
    changes = "since the last build csrc/cpu/toy.cpp changed"
    assert reason(other, one.store) == changes
    other = _key(other.text + "".join(f"source {n}.h: 0\n" for n in range(4)))
    assert reason(other, one.store) == f"{changes}; 0.h changed; 1.h changed; 2 more sources changed"


@needs_compiler
def test_of_many_who_wait_one_says_for_whom(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(lock_module, "_FIRST_MESSAGE_SECONDS", 0.0)
    one = toy(tmp_path)
    name = f"{one.store.roots[0].layout_dir}/{one.key.name}"
    logs = [tmp_path / f"{number}.log" for number in range(4)]

    def wait(log):
        handler = logging.FileHandler(log)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        logging.getLogger("npu_ce_jit").setLevel(logging.DEBUG)
        with build_lock(name, one.settings, one.find):
            pass

    waits = f" waiting for process {os.getpid()} on "
    with build_lock(name, one.settings, one.find):
        children = [fork(lambda log=log: wait(log)) for log in logs]
        wait_until(lambda: all(log.exists() and waits in log.read_text("utf-8") for log in logs))
    assert [exit_code(child) for child in children] == [0] * 4
    assert sum(f"INFO{waits}" in log.read_text("utf-8") for log in logs) == 1


INTERRUPTED = """
import os, sys, signal, threading, time
pids = os.environ["PIDS"]

def interrupt():
    while not (os.path.exists(pids) and open(pids).read().endswith("\\n")):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    BEGIN
    sys.exit("was not interrupted")
except KeyboardInterrupt:
    pass
compiler = int(open(pids).read().split()[0])
deadline = time.monotonic() + 200
while os.path.exists(f"/proc/{compiler}/cmdline") and open(f"/proc/{compiler}/cmdline").read():
    assert time.monotonic() < deadline, "the compiler goes on"
    time.sleep(0.05)
open(os.environ["STOP"], "w").close()
try:
    BEGIN
except NotImplementedError:
    pass  # the toy library has no kernels for the call
from npu_ce_jit import bootstrap
assert bootstrap.current().backend == "cpp"
"""
CALL = "import torch, npu_ce_jit; npu_ce_jit.cross_entropy(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))"


@needs_compiler
@pytest.mark.parametrize(("begin", "policy"), [("import npu_ce_jit", "eager"), (CALL, "lazy")])
def test_an_interrupt_stops_the_compilers_and_the_next_import_or_call_builds(tmp_path, begin, policy):
    pids, stop = tmp_path / "pids", tmp_path / "stop"
    cxx = compiler_script(tmp_path, f"[ -e {stop} ] || {{ echo $$ >> {pids}; exec sleep 300; }}")
    done = run_python_from_the_start(
        copy_package(tmp_path / "site"), INTERRUPTED.replace("BEGIN", begin), CXX=cxx,
        PIDS=str(pids), STOP=str(stop), NPU_CE_JIT_BUILD=policy,
        NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"), TMPDIR=str(tmp_path),
    )  # fmt: skip
    said = [line.partition(" (")[0].partition(" after ")[0].partition(" in ")[0] for line in done.stderr.splitlines()]
    may_come = ("npu_ce_jit: no C++ kernels: nothing is built yet", "npu_ce_jit: still building: ")
    said = [line for line in said if not line.startswith(may_come)]
    assert said == [
        "npu_ce_jit: building the CPU kernels", "npu_ce_jit: interrupted",
        "npu_ce_jit: building the CPU kernels", "npu_ce_jit: built",
    ]  # fmt: skip
