# SPDX-License-Identifier: Apache-2.0
"""Builds whose messages nobody can read: streams that are closed, redirected, full, or not files."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import subprocess
import sys

import pytest
from toy_package import compiler_script, copy_package, exit_code, fork, needs_compiler, toy

from npu_ce_jit.jit.build import progress
from npu_ce_jit.jit.loader import load_or_build
from npu_ce_jit.log import set_up_log

pytestmark = needs_compiler


class NotebookStream(io.TextIOBase):
    """Like a notebook's stream: it has write and flush, but no descriptor and no terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


class BareStream:
    """Has no isatty, flush and fileno."""

    def write(self, _: str) -> None:
        raise OSError(28, "No space left on device")


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def _use_own_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes pytest's handlers: this package's prints only where no other handler does."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger = logging.getLogger("npu_ce_jit")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    set_up_log(logging.INFO)


@pytest.mark.parametrize(
    "make", [lambda: None, _closed, BareStream, NotebookStream], ids=["none", "closed", "bare", "notebook"]
)
def test_a_build_needs_no_stream(tmp_path, monkeypatch, make):
    _use_own_handler(monkeypatch)
    monkeypatch.setattr(progress, "_HEARTBEAT_SECONDS", 0.1)
    one = toy(tmp_path, CXX=compiler_script(tmp_path, "sleep 0.5"))
    stream = make()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    artifact = load_or_build(one.target, one.settings, one.toolchain, may_build=True)
    monkeypatch.undo()
    assert artifact is not None
    if isinstance(stream, NotebookStream):
        assert "npu_ce_jit: building the CPU kernels" in stream.text
        assert "npu_ce_jit: built in " in stream.text


def test_a_terminal_that_goes_away_while_it_is_written_to_stops_no_build(tmp_path, monkeypatch):
    class Terminal(BareStream):
        def isatty(self) -> bool:
            return True

    _use_own_handler(monkeypatch)
    one = toy(tmp_path, CXX=compiler_script(tmp_path, "sleep 0.5"))
    monkeypatch.setattr(sys, "stderr", Terminal())
    artifact = one.build()
    monkeypatch.undo()
    assert artifact.library.is_file()


def test_a_process_whose_three_descriptors_are_closed_builds_and_loads(tmp_path):
    """Files that it opens get the numbers 0 to 2, which its children would take for their standard streams."""
    one = toy(tmp_path)

    def task():
        os.closerange(0, 3)
        sys.stdin = sys.stdout = sys.stderr = None
        artifact = one.build()
        assert "link libnpu_ce_jit_cpu.so" in (artifact.entry_dir / "build.log").read_text("utf-8")
        assert ctypes.CDLL(str(artifact.library)).toy() == 42

    assert exit_code(fork(task)) == 0


@pytest.mark.parametrize("redirection", [">&- 2>&-", ">/dev/full 2>&1", ">out 2>&1"])
def test_an_import_works_however_its_streams_are_redirected(tmp_path, redirection):
    site_dir = copy_package(tmp_path / "site")
    code = "import npu_ce_jit as n; open('backend', 'w').write(n.bootstrap.current().backend)"
    command = f'exec "$0" -c "$1" {redirection}'
    environment = {"PYTHONPATH": str(site_dir), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    if "full" in redirection and not _torchs_builder_can_be_imported_with_full_streams():
        pytest.skip("this torch's cpp_extension cannot be imported where stderr is full")
    done = subprocess.run(["sh", "-c", command, sys.executable, code], env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0 or redirection == ">/dev/full 2>&1"
    assert (tmp_path / "backend").read_text("ascii") == "cpp"
    if "out" in redirection:
        assert "npu_ce_jit: built in " in (tmp_path / "out").read_text("utf-8")


def _torchs_builder_can_be_imported_with_full_streams() -> bool:
    """Not that of a CUDA build of torch 2.7 where there is no GPU: it prints so to stderr, and the print fails."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", "import torch.utils.cpp_extension"]
        return subprocess.run(command, stdout=full, stderr=full, timeout=300).returncode == 0
