# SPDX-License-Identifier: Apache-2.0
"""What commands print, on a terminal and elsewhere: complete, unchanged, and no traceback without a reader."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from terminal import terminal
from toy_package import copy_package, needs_compiler

from npu_ce_jit import console
from npu_ce_jit.bootstrap import run as session_of_this_process
from npu_ce_jit.cli import doctor, main
from npu_ce_jit.settings import Settings

LONG = "/" + "/".join(["a directory of thirty characters"] * 9) + "/[/x] [bold]:bug:[red].so"
assert len(LONG) > 300

print_table = partial(console.print_table, may_colour=True)


@pytest.fixture
def printed(monkeypatch):
    """Runs a function with standard output on a terminal of 80 columns, and returns the screen."""

    def run(print_it):
        with (
            terminal() as (descriptor, screen),
            os.fdopen(os.dup(descriptor), "w") as stdout,
            monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "stdout", stdout)
            print_it()
        return screen

    return run


def test_a_table_on_a_terminal_is_whole_and_takes_no_path_for_markup(printed):
    screen = printed(lambda: print_table(("", "entry", "problem"), [("ok", LONG, ""), ("bad", "/[/x]", "no")]))
    header, *rows = screen.lines
    assert header.split() == ["entry", "problem"]
    assert rows[0] == f"ok   {LONG}"
    assert rows[1].split() == ["bad", "/[/x]", "no"]
    assert "\x1b[1m" in screen.text, "the header is bold"


def test_a_report_on_a_terminal_is_coloured_and_whole(printed):
    checks = [
        doctor.Check("cache", "ok", LONG, "HOME"),
        doctor.Check("ninja", "warn", "none", f"looked in {LONG}", "pip install ninja"),
        doctor.Check("CPU kernels", "fail", "[/x]", "first\nsecond", "Mend it."),
    ]
    screen = printed(lambda: console.show(doctor.lines(session_of_this_process(), checks), may_colour=True))
    assert screen.lines[:-1] == [
        f"ok    cache: {LONG}  (HOME)",
        "warn  ninja: none",
        f"      looked in {LONG}",
        "      -> pip install ninja",
        "fail  CPU kernels: [/x]",
        "      first",
        "      second",
        "      -> Mend it.",
    ]
    for style, word in (("32", "ok"), ("33", "warn"), ("1;31", "fail")):
        assert f"\x1b[{style}m{word}" in screen.text


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_elsewhere_and_where_no_colours_are_wanted_it_is_plain(printed, capsys, variables):
    table = f"    entry\nok  {LONG}\n"
    print_table(("", "entry"), [("ok", LONG)])
    assert capsys.readouterr().out == table
    may_colour = Settings.from_env({"TERM": "xterm", **variables}).may_colour
    screen = printed(lambda: console.print_table(("", "entry"), [("ok", LONG)], may_colour=may_colour))
    assert screen.text.replace("\r\n", "\n") == table


def test_what_the_output_cannot_show_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    console.escape_what_stdout_cannot_show()
    print_table(("", "entry"), [("ok", "/home/zoë/\udcff")])
    console.flush()
    assert written.getvalue() == b"    entry\nok  /home/zo\\xeb/\\udcff\n"


def test_without_any_standard_output_a_command_ends_as_it_would_have(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main.main(["verify"]) == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return copy_package(tmp_path_factory.mktemp("site"))


def _start(site: Path, *words: str, stdout: int, **variables: str) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(site), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PATH": "", "TERM": "xterm"}
    return subprocess.Popen(
        [sys.executable, "-m", "npu_ce_jit", *words],
        env=environment | variables,
        cwd=site,  # first on the path of `-m`
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@needs_compiler
def test_a_command_on_a_terminal(site, tmp_path):
    cache = tmp_path / "[bold]" / ("long" * 40)
    variables = {"NPU_CE_JIT_CACHE_DIR": str(cache), "PATH": os.environ["PATH"]}
    for words in (["doctor"], ["info"], ["verify"]):
        with terminal() as (descriptor, screen):
            process = _start(site, *words, stdout=descriptor, **variables)
            _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        (library,) = cache.rglob("*.so")
        named = str(library.parent if words == ["verify"] else library)
        assert any(named in line for line in screen.lines), screen.lines
        assert "\x1b[" in screen.text


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (["info"], {}),
        (["doctor"], {}),
        (["--help"], {}),
        (["info"], {"PYTHONUNBUFFERED": "1"}),
    ],
)
def test_a_reader_that_leaves_ends_a_command_quietly(site, tmp_path, words, variables):
    reading, writing = os.pipe()
    os.close(reading)
    process = _start(site, *words, stdout=writing, HOME=str(tmp_path), TMPDIR=str(tmp_path), **variables)
    os.close(writing)
    _, err = process.communicate(timeout=300)
    assert process.returncode == console.READER_LEFT
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_a_full_disk_below_the_output_is_told(site, tmp_path):
    with open("/dev/full", "w") as full:
        process = _start(site, "verify", stdout=full.fileno(), HOME=str(tmp_path), TMPDIR=str(tmp_path))
        _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_an_ascii_output_shows_any_path(site, tmp_path):
    home = tmp_path / "zoë"
    home.mkdir()
    with open(tmp_path / "out", "wb") as out:
        process = _start(site, "info", stdout=out.fileno(), HOME=str(home), PYTHONIOENCODING="ascii", LANG="C")
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert b"zo\\xeb/.cache/npu_ce_jit" in (tmp_path / "out").read_bytes()
