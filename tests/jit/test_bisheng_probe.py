# SPDX-License-Identifier: Apache-2.0
"""Which of a compiler's failures the probe detects, and which of them end a build."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from bisheng_scripts import MACHINE, NAMES, libraries, machine, make
from toy_package import is_running, needs_compiler, wait_until

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.bisheng import probe as probe_module

pytestmark = needs_compiler


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ("garbage", "file too short|invalid ELF header"),
        ("nameless", "undefined symbol: npu_ce_probe_fill"),
        ("one", "undefined symbol: npu_ce_probe_add"),
        ("fatal", "ended with code -11 and said nothing"),
    ],
)
def test_a_library_that_does_not_open_or_lacks_a_launcher_is_no_success(machine, libraries, library, said):
    recipe = machine(asc=make(libraries[library]), cce_soc=make(libraries["good"])).first()
    assert recipe.facts["bisheng_flags"] == "cce-soc"
    assert re.search(said, recipe.facts["bisheng_flags_tried"][0])


def test_a_symbol_that_nobody_defines_is_found_at_once(machine, libraries):
    """Otherwise, with lazy binding, only a call would find it."""
    recipe = machine(asc=make(libraries["undefined"]), cce_soc=make(libraries["good"])).first()
    assert "undefined symbol: nowhere" in recipe.facts["bisheng_flags_tried"][0]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("exit 0", "ended with code 0 and made no "),
        ("exit 3", "ended with code 3 and said nothing"),
        ("kill -9 $$", "ended with code -9 and said nothing"),
        ("echo; echo licence expired; exit 3", "licence expired"),
    ],
)
def test_a_compiler_that_fails_in_silence_is_told_too(machine, lines, said):
    with pytest.raises(BuildError) as caught:
        machine(otherwise=lines).first()
    reported = "\n".join(caught.value.first_lines)
    assert said in reported
    assert all(name in reported for name in NAMES)


def test_a_compiler_that_hangs_is_stopped_with_what_it_started_and_not_started_again(machine, tmp_path, monkeypatch):
    pids = tmp_path / "pids"

    class Impatient(subprocess.Popen):
        """Its timeout expires as soon as the compiler has started a process."""

        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            wait_until(lambda: pids.exists() and pids.read_text("utf-8").endswith("\n"))
            raise subprocess.TimeoutExpired("bisheng", timeout)

    monkeypatch.setattr(probe_module.subprocess, "Popen", Impatient)
    with pytest.raises(BuildError) as caught:
        machine(otherwise=f"sleep 300 & echo $! >> {pids}; wait").first()
    assert "timed out after 120.0 seconds" in caught.value.first_lines[0]
    assert "hangs" in caught.value.hint
    (pid,) = pids.read_text("utf-8").split()
    wait_until(lambda: not is_running(pid))  # the kernel takes a moment to end it


@pytest.mark.parametrize("content", ["\x7fELF", "#!/no/such/interpreter\n"])
def test_a_compiler_that_cannot_be_started_is_told_once(machine, content):
    one = machine()
    Path(one.compiler.program).write_text(content, "latin-1")
    with pytest.raises(BuildError) as caught:
        one.first()
    (line,) = caught.value.first_lines
    assert line.startswith("asc: error: [Errno ")


def test_a_compiler_without_memory_is_not_started_again(machine):
    with pytest.raises(BuildError) as caught:
        machine(otherwise="echo 'bisheng: error: unable to execute command: Killed'; exit 1").first()
    assert len(caught.value.first_lines) == 1
    assert "MAX_JOBS=1" in caught.value.hint


def test_a_full_disk_is_no_verdict_on_a_flag_set(machine, libraries):
    one = machine(asc="echo 'error: No space left on device'; exit 1", cce_soc=make(libraries["good"]))
    with pytest.raises(OSError, match="No space left on device"):
        one.first()


def test_the_compiler_finds_its_linker_and_its_libraries_without_set_env(machine, libraries, tmp_path):
    lines = f'echo "$ASCEND_HOME_PATH" "$LD_LIBRARY_PATH" > {tmp_path}/seen; ld.lld; {make(libraries["good"])}'
    one = machine(asc=f"ld.lld || exit 1; {lines}")
    lld = Path(one.compiler.program).with_name("ld.lld")
    lld.write_text("#!/bin/sh\n", "utf-8")
    lld.chmod(0o755)
    assert one.first().facts["bisheng_flags"] == "asc"
    home = one.compiler.home
    assert (tmp_path / "seen").read_text("utf-8") == f"{home} {home}/lib64:/users/own:{home}/{MACHINE}-linux/devlib\n"
