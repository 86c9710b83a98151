# SPDX-License-Identifier: Apache-2.0
"""Which flags a build chooses, with compilers that are shell scripts and fail in ways of their own."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_package import needs_compiler

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit import cures
from npu_ce_jit.jit import probe as probe_module
from npu_ce_jit.jit.ladder import LADDER, api_dir_of, command_of
from npu_ce_jit.jit.npu_recipe import cann_environment
from npu_ce_jit.jit.probe import Probe
from npu_ce_jit.settings import Settings

pytestmark = needs_compiler

MACHINE = platform.machine()
NAMES = [rung.name for rung in LADDER]
REFUSE = "echo \"clang: error: unknown argument: '$1'\" >&2; exit 1"
# In a script: what tells a rung's command line from those of the others.
_CASES = {
    "asc": "*--npu-arch=*",
    "cce-soc": "*--cce-soc-version=*",
    "cce-vec": "*--cce-aicore-arch=dav-c220-vec*",
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A library as bisheng should make it, and three that it should not."""
    directory = tmp_path_factory.mktemp("libraries")
    bodies = {
        "good": 'extern "C" void npu_ce_probe() {}',
        "nameless": "void npu_ce_probe() {}",
        "undefined": 'extern "C" void nowhere(); extern "C" void npu_ce_probe() { nowhere(); }',
        "fatal": '#include <csignal>\nstatic int x = raise(SIGSEGV); extern "C" void npu_ce_probe() {}',
    }
    for name, body in bodies.items():
        (directory / f"{name}.cpp").write_text(body, "utf-8")
        words = ["g++", "-shared", "-fPIC", f"{name}.cpp", "-o", f"{name}.so"]
        subprocess.run(words, cwd=directory, check=True)
    (directory / "garbage.so").write_text("no library", "utf-8")
    return {name: directory / f"{name}.so" for name in (*bodies, "garbage")}


def make(library: Path) -> str:
    """The shell lines that make this library the output."""
    return f'while [ "$1" != -o ]; do shift; done; cp {shlex.quote(str(library))} "$2"'


@pytest.fixture
def probe(tmp_path: Path) -> Callable[..., Probe]:
    """A CANN whose compiler runs the shell lines of each rung, `otherwise` for the rest."""

    def probe_of(otherwise: str = REFUSE, first: str = ":", **rungs: str) -> Probe:
        home = tmp_path / "CANN 9 $x"
        bisheng = home / f"{MACHINE}-linux/ccec_compiler/bin/bisheng"
        bisheng.parent.mkdir(parents=True)
        (home / "compiler/tikcpp/tikcfw/impl").mkdir(parents=True)
        (home / "compiler/tikcpp/tikcfw/kernel_operator.h").touch()
        cases = "".join(
            f"{pattern}) {rungs.get(name.replace('-', '_'), otherwise)};;\n" for name, pattern in _CASES.items()
        )
        bisheng.write_text(f'#!/bin/sh\n{first}\ncase "$*" in\n{cases}esac\n', "utf-8")
        bisheng.chmod(0o755)
        work = tmp_path / "work"
        work.mkdir()
        settings = Settings.from_env({"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": "/users/own"})
        environment = settings.child_environment(**cann_environment(settings, str(bisheng), str(home)))
        return Probe(str(bisheng), str(home), ["g++"], work, environment)

    return probe_of


@pytest.mark.parametrize("name", NAMES)
def test_the_first_rung_that_works_is_taken(probe, libraries, name):
    command, attempts = probe(**{name.replace("-", "_"): make(libraries["good"])}).first_that_works()
    assert [attempt.rung.name for attempt in attempts] == NAMES[: NAMES.index(name) + 1]
    assert [attempt.works for attempt in attempts] == [False] * NAMES.index(name) + [True]
    assert set(LADDER[NAMES.index(name)].flags) <= set(command.before)
    assert str(attempts[-1]) == f"{name}: works"


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ("garbage", "file too short|invalid ELF header"),
        ("nameless", "undefined symbol: npu_ce_probe"),
        ("undefined", "undefined symbol: nowhere"),
        ("fatal", "ended with code -11 and said nothing"),
    ],
)
def test_a_library_that_does_not_open_or_lacks_the_launcher_is_no_success(probe, libraries, library, said):
    _, attempts = probe(asc=make(libraries[library]), cce_soc=make(libraries["good"])).first_that_works()
    assert [attempt.works for attempt in attempts] == [False, True]
    assert re.search(said, str(attempts[0]))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("exit 0", "ended with code 0 and made no library"),
        ("exit 3", "ended with code 3 and said nothing"),
        ("kill -9 $$", "ended with code -9 and said nothing"),
        ("echo; echo licence expired; exit 3", "licence expired"),
    ],
)
def test_a_compiler_that_fails_in_silence_is_told_too(probe, lines, said):
    with pytest.raises(BuildError) as caught:
        probe(otherwise=lines).first_that_works()
    assert len(caught.value.first_lines) == len(LADDER)
    for name, line in zip(NAMES, caught.value.first_lines, strict=True):
        assert line.startswith(f"{name}: ")
        assert line.endswith(said)


def test_when_none_works_the_error_has_a_line_a_rung_the_command_the_log_and_a_cure(probe):
    one = probe(asc="echo 'error: no asc here'; exit 1")
    with pytest.raises(BuildError) as caught:
        one.first_that_works()
    error = caught.value
    assert error.first_lines[0] == "asc: error: no asc here"
    assert "3 sets of flags" in error.fact
    assert shlex.split(error.command)[0] == one.bisheng
    log = Path(error.log_path).read_text("utf-8")
    assert log.count("probe.asc") == len(LADDER)
    assert "NPU_CE_JIT_BISHENG" in error.hint


def test_a_rung_whose_kernels_compute_wrongly_is_not_tried_again(probe, libraries):
    one = probe(asc="echo tried; exit 1", cce_soc=make(libraries["good"]))
    verdict = "The NPU kernels fail their self-check in float32: expected loss = 1, got 2."
    _, attempts = one._replace(rejected={"asc": verdict}).first_that_works()
    assert list(map(str, attempts)) == [f"asc: error: {verdict}", "cce-soc: works"]


def test_when_all_that_compile_compute_wrongly_each_is_told_and_nothing_is_compiled(probe):
    one = probe(otherwise="echo error: tried; exit 1")
    verdicts = {name: f"The NPU kernels fail their self-check: {number}." for number, name in enumerate(NAMES)}
    with pytest.raises(BuildError) as caught:
        one._replace(rejected=verdicts).first_that_works()
    error = caught.value
    assert error.first_lines == tuple(f"{name}: error: {verdict}" for name, verdict in verdicts.items())
    assert "rejected-*" in error.hint
    assert all(verdict in Path(error.log_path).read_text("utf-8") for verdict in verdicts.values())
    del verdicts["cce-vec"]
    with pytest.raises(BuildError) as caught:
        one._replace(rejected=verdicts).first_that_works()
    assert caught.value.first_lines[-1] == "cce-vec: error: tried"
    assert "rejected-*" in caught.value.hint, "what compiled got furthest"


def test_a_compiler_that_hangs_is_stopped_with_what_it_started(probe, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_module, "_SECONDS", 0.2)
    one = probe(otherwise=f"sleep 60 & echo $! >> {tmp_path}/pids; wait")
    with pytest.raises(BuildError) as caught:
        one.first_that_works()
    assert "timed out after 0.2 seconds" in caught.value.first_lines[0]
    assert "hangs" in caught.value.hint
    for pid in (tmp_path / "pids").read_text("utf-8").split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text("utf-8").split()[2] == "Z"


@pytest.mark.parametrize("content", ["\x7fELF", "#!/no/such/interpreter\n"])
def test_a_compiler_that_cannot_be_started_is_told(probe, content):
    one = probe()
    Path(one.bisheng).write_text(content, "latin-1")
    with pytest.raises(BuildError) as caught:
        one.first_that_works()
    assert caught.value.first_lines[0].startswith("asc: error: [Errno ")


def test_the_compiler_finds_its_linker_and_its_libraries_without_set_env(probe, libraries, tmp_path):
    lines = f'echo "$ASCEND_HOME_PATH" "$LD_LIBRARY_PATH" > {tmp_path}/seen; ld.lld; {make(libraries["good"])}'
    one = probe(asc=f"ld.lld || exit 1; {lines}")
    lld = Path(one.bisheng).with_name("ld.lld")
    lld.write_text("#!/bin/sh\n", "utf-8")
    lld.chmod(0o755)
    _, attempts = one.first_that_works()
    assert len(attempts) == 1
    seen = (tmp_path / "seen").read_text("utf-8")
    assert seen == f"{one.home} {one.home}/lib64:/users/own:{one.home}/{MACHINE}-linux/devlib\n"


NO_CSTDINT = "echo \"kernel_macros.h:24: fatal error: 'cstdint' file not found\"; exit 1"


def test_a_missing_cstdint_is_tried_again_with_the_root_of_gcc(probe, libraries):
    good = make(libraries["good"])
    lines = f'case "$*" in *--gcc-toolchain=*) {good};; *) {NO_CSTDINT};; esac'
    command, attempts = probe(asc=lines).first_that_works()
    libgcc = subprocess.run(["g++", "-print-file-name=libgcc.a"], capture_output=True, text=True).stdout
    assert f"--gcc-toolchain={libgcc.split('/lib/gcc/')[0]}" in command.before
    assert [attempt.works for attempt in attempts] == [False, True]


def test_then_with_the_directories_that_gcc_itself_reads(probe, libraries):
    good = make(libraries["good"])
    lines = f'case "$*" in *-isystem*) {good};; *) {NO_CSTDINT};; esac'
    command, attempts = probe(asc=lines).first_that_works()
    assert [attempt.works for attempt in attempts] == [False, False, True]
    dirs = [Path(word.removeprefix("-isystem")) for word in command.before if word.startswith("-isystem")]
    assert any((path / "cstdint").is_file() for path in dirs)


def test_then_the_package_to_install_is_named(probe):
    with pytest.raises(BuildError) as caught:
        probe(otherwise=NO_CSTDINT).first_that_works()
    assert len(caught.value.first_lines) == 3 * len(LADDER)
    assert "install" in caught.value.hint
    assert "apt-get install" in caught.value.hint
    assert "g++" in caught.value.hint or "libstdc++-" in caught.value.hint


def test_without_a_gcc_there_is_nothing_to_try_again(probe):
    assert list(cures.gcc_flags(["/no/such/g++"], os.environ)) == []


@pytest.mark.parametrize(
    ("output", "cure"),
    [
        ("x.asc:1: fatal error: 'kernel_operator.h' file not found", "set ASCEND_HOME_PATH"),
        ('bisheng: error: unable to execute command: Executable "ld.lld" doesn\'t exist!', "beside {bisheng}"),
        ("libascend_hal.so: cannot open shared object file: No such file or directory", "driver"),
        ("bisheng: error while loading shared libraries: libLLVM-15.so: cannot open", "set_env.sh"),
        ("error: [Errno 8] Exec format error: 'bisheng'", "CANN for {machine}"),
        ("error: [Errno 13] Permission denied: 'bisheng'", "chmod +x {bisheng}"),
        ("error: No space left on device", "NPU_CE_JIT_CACHE_DIR"),
        ("error: something new", "NPU_CE_JIT_BISHENG"),
    ],
)
def test_each_known_failure_has_its_cure(probe, output, cure):
    one = probe()
    expected = cure.format(bisheng=one.bisheng, machine=MACHINE)
    assert expected in cures.of(output, one.bisheng, one.home)


def test_a_cann_without_ascend_cs_headers_is_told_whatever_the_compiler_says(tmp_path):
    assert "install CANN's toolkit" in cures.of("error: something new", "bisheng", str(tmp_path))


@pytest.mark.parametrize(
    "place", ["compiler/tikcpp/tikcfw", f"{MACHINE}-linux/tikcpp/tikcfw", f"{MACHINE}-linux/asc/include"]
)
def test_the_old_front_door_gets_the_headers_and_libraries_of_either_layout(tmp_path, place):
    home = tmp_path / "cann"
    for name in ("include", place, f"{place}/impl", f"{place}/interface"):
        (home / name).mkdir(parents=True)
    (home / place / "kernel_operator.h").touch()
    assert api_dir_of(str(home), MACHINE) == home / place
    for rung in LADDER:
        command = command_of(rung, str(home), MACHINE, ("--more",))
        includes = [word for word in command.before if word.startswith("-I")]
        if rung.needs_cann_dirs:
            assert includes == [
                f"-I{home}/{name}" for name in ("include", place, f"{place}/impl", f"{place}/interface")
            ]
            assert command.after == (f"-L{home}/lib64", "-lruntime", "-lascendcl")
        else:
            assert includes == []
            assert command.after == ()
        assert "--more" in command.before


def test_no_rung_names_the_chip_of_this_machine_or_links_in_a_step_of_its_own():
    for rung in LADDER:
        assert {"-shared", "-fPIC", "-std=c++17"} <= set(rung.flags)
        assert "-c" not in rung.flags
        macros = [flag for flag in rung.flags if flag.startswith("-D")]
        assert [macro.partition("=")[0] for macro in macros] == ["-DNPU_CE_VECTOR"]
