# SPDX-License-Identifier: Apache-2.0
"""Which set of flags a build takes, with compilers that are shell scripts and fail in ways of their own."""

from __future__ import annotations

import itertools
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from toy_package import is_running, needs_compiler, wait_until

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.bisheng import hints, probe_kernels
from npu_ce_jit.jit.bisheng import probe as probe_module
from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS, Compiler
from npu_ce_jit.jit.build.cpu_recipe import Recipe
from npu_ce_jit.jit.build.npu_recipe import npu_recipes
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain.compiler_output import BUILD_LOG, Failure
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings

pytestmark = needs_compiler

MACHINE = platform.machine()
NAMES = [flag_set.name for flag_set in FLAG_SETS]
REFUSE = "echo \"clang: error: unknown argument: '$1'\" >&2; exit 1"
# In a script: what tells a set of flags's command line from those of the others, the most particular first.
_CASES = {
    "cce-two-steps": "*' -c '*|*--cce-fatobj-link*",
    "cce-one-unit": "*-xcce*' -include '*",
    "cce-npu-arch": "*-xcce*--npu-arch=*",
    "asc-dirs": "*' -x asc '*-lruntime*",
    "asc": "*' -x asc '*",
    "cce-soc": "*--cce-soc-version=*",
    "cce-vec": "*--cce-aicore-arch=dav-c220-vec*",
}
assert sorted(_CASES) == sorted(NAMES)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A library as bisheng should make it, and some that it should not."""
    directory = tmp_path_factory.mktemp("libraries")
    both = "".join(f'extern "C" void {name}() {{}}\n' for name in probe_kernels.LAUNCHERS)
    bodies = {
        "good": both,
        "one": both.splitlines()[0],
        "nameless": both.replace('extern "C" ', ""),
        "undefined": f'{both}extern "C" void nowhere(); extern "C" void calls() {{ nowhere(); }}',
        "fatal": f"#include <csignal>\nstatic int x = raise(SIGSEGV); {both}",
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


class Machine(NamedTuple):
    """A machine with an NPU's software, whose bisheng is a script."""

    compiler: Compiler
    directory: Path
    root: Path

    def recipes(self, **rejected: str):
        known = Toolchain(Settings())
        values = {
            "bisheng": self.compiler.program,
            "cann_home": self.compiler.home,
            "cxx": "g++",
            "torch_npu_dir": "/t",
        }
        facts = {name: getattr(known, name)._replace(value=value) for name, value in values.items()}
        settings = Settings.from_env({"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": "/users/own"})
        sources = Sources(self.root, ("ascendc/a.asc", "ascendc/b.asc", "csrc/npu/n.cpp"), ("ONE=1",))
        verdicts = [({"bisheng_flags": name.replace("_", "-")}, verdict) for name, verdict in rejected.items()]
        return npu_recipes(settings, known.replace(**facts), sources, self.directory, "0123456789ab", verdicts)

    def first(self, **rejected: str) -> Recipe:
        return next(self.recipes(**rejected))

    @property
    def log(self) -> str:
        return (self.directory / BUILD_LOG).read_text("utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    """A CANN whose compiler runs the shell lines of each set of flags, `otherwise` for the rest."""

    def machine_of(otherwise: str = REFUSE, **flag_sets: str) -> Machine:
        home = tmp_path / "CANN 9 $x"
        bisheng = home / f"{MACHINE}-linux/ccec_compiler/bin/bisheng"
        bisheng.parent.mkdir(parents=True)
        (home / "compiler/tikcpp/tikcfw/impl").mkdir(parents=True)
        (home / "compiler/tikcpp/tikcfw/kernel_operator.h").touch()
        cases = "".join(
            f"{pattern}) {flag_sets.get(name.replace('-', '_'), otherwise)};;\n" for name, pattern in _CASES.items()
        )
        bisheng.write_text(f'#!/bin/sh\ncase " $* " in\n{cases}esac\n', "utf-8")
        bisheng.chmod(0o755)
        work = tmp_path / "work"
        work.mkdir()
        return Machine(Compiler(str(bisheng), str(home), MACHINE), work, tmp_path / "sources")

    return machine_of


def refusal(recipe: Recipe, *lines: str, output: str = "") -> Failure:
    """As ninja tells it of the step that makes `output`, or of that which links the kernels."""
    return Failure(
        (output or recipe.libraries[1],), f"bisheng for {recipe.facts['bisheng_flags']}", lines or ("ld.lld: error: x",)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_first_flag_set_that_works_is_taken(machine, libraries, name):
    recipe = machine(**{name.replace("-", "_"): make(libraries["good"])}).first()
    assert recipe.facts["bisheng_flags"] == name
    assert [told.partition(":")[0] for told in recipe.facts["bisheng_flags_tried"]] == NAMES[: NAMES.index(name) + 1]
    assert recipe.facts["bisheng_flags_tried"][-1] == f"{name}: works"
    assert recipe.libraries[1] == f"libnpu_ce_kernels-{name}-0123456789ab.so"
    assert set(FLAG_SETS[NAMES.index(name)].flags) <= set(recipe.steps[0].words["words"])


@pytest.mark.parametrize("name", NAMES)
def test_what_the_kernels_are_built_with_is_what_the_probe_was(machine, libraries, tmp_path, name):
    log = f'echo "$@" >> {tmp_path}/said; {make(libraries["good"])}'
    one = machine(**{name.replace("-", "_"): log})
    recipe = one.first()
    by_bisheng = [step for step in recipe.steps if step.rule.startswith("bisheng")]
    said = (tmp_path / "said").read_text("utf-8").splitlines()
    assert len(by_bisheng) == len(said)
    ours = {"-DONE=1"}
    names = {recipe.libraries[1]: f"probe-{name}.so"}
    for probed, unit in zip(probe_kernels.UNITS, ("ascendc/a.asc", "ascendc/b.asc"), strict=True):
        names |= {str(one.root / unit): probed, f"{unit}.o": f"{probed}.o"}
    for step, line in zip(by_bisheng, said, strict=True):
        assert [names.get(word, word) for word in step.words["words"][1:] if word not in ours] == shlex.split(
            line.replace("CANN 9 $x", "'CANN 9 $x'")
        )


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
    """Only a call would find it, where the linker binds lazily."""
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
    told = "\n".join(caught.value.first_lines)
    assert said in told
    assert all(name in told for name in NAMES)


def test_when_none_works_the_error_tells_each_flag_set_the_command_the_log_and_a_cure(machine):
    one = machine(asc="echo 'error: no asc here'; exit 1")
    with pytest.raises(BuildError) as caught:
        one.first()
    error = caught.value
    assert error.first_lines[0] == "asc: error: no asc here"
    assert error.first_lines[1] == f"{', '.join(NAMES[1:2])}: clang: error: unknown argument: '-x'"
    assert error.first_lines[2].startswith(f"{', '.join(NAMES[2:])}: ")
    assert f"none of the {len(FLAG_SETS)} sets of flags" in error.fact
    assert shlex.split(error.command)[0] == one.compiler.program
    assert Path(error.log_path) == one.directory / BUILD_LOG
    for name in NAMES:
        assert one.log.count(f"{name}: {shlex.quote(one.compiler.program)} ") == 1, "its command"
    assert one.log.count("error: no asc here") == 1
    assert "NPU_CE_JIT_BISHENG" in error.hint


def test_a_flag_set_that_takes_the_probe_and_not_the_kernels_is_left(machine, libraries):
    """The fault of which there are reports: one unit links, and several define the same symbol."""
    one = machine(otherwise=make(libraries["good"]))
    recipes = one.recipes()
    recipe = next(recipes)
    for number, name in enumerate(NAMES):
        assert recipe.facts["bisheng_flags"] == name
        assert recipe.facts["bisheng_flags_tried"] == [
            *(f"{other}: takes the probe and not the kernels: ld.lld: error: {other}" for other in NAMES[:number]),
            f"{name}: works",
        ]
        failure = refusal(recipe, f"ld.lld: error: {name}")
        if name != NAMES[-1]:
            recipe = recipes.send(failure)
    with pytest.raises(BuildError) as caught:
        recipes.send(failure)
    assert caught.value.first_lines == tuple(
        f"{name}: takes the probe and not the kernels: ld.lld: error: {name}" for name in NAMES
    )
    assert caught.value.command == f"bisheng for {NAMES[-1]}"


def test_a_unit_that_does_not_compile_by_itself_leaves_the_two_steps_too(machine, libraries):
    recipes = machine(cce_two_steps=make(libraries["good"]), cce_one_unit=make(libraries["good"])).recipes()
    recipe = next(recipes)
    assert [step.output for step in recipe.steps][:3] == ["ascendc/a.asc.o", "ascendc/b.asc.o", recipe.libraries[1]]
    assert recipes.send(refusal(recipe, output="ascendc/a.asc.o")).facts["bisheng_flags"] == "cce-one-unit"


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("csrc/npu/n.o", "n.cpp:1: error: x"),
        ("libnpu_ce_jit_npu.so", "undefined reference to `x'"),
        ("", "clang: error: unable to execute command: Killed"),
    ],
)
def test_what_no_other_flag_set_would_mend_ends_the_build(machine, libraries, output, line):
    recipes = machine(otherwise=make(libraries["good"])).recipes()
    with pytest.raises(StopIteration):
        recipes.send(refusal(next(recipes), line, output=output))


def test_an_error_at_the_same_place_of_a_source_on_three_flag_sets_is_the_source_s(machine, libraries):
    one = machine(otherwise=make(libraries["good"]))
    recipes = one.recipes()
    recipe = next(recipes)
    for _ in range(2):
        recipe = recipes.send(refusal(recipe, f"{one.root}/ascendc/a.asc:3:5: error: expected ';'"))
    with pytest.raises(StopIteration):
        recipes.send(refusal(recipe, f"{one.root}/ascendc/a.asc:3:5: error: expected ';'"))


def test_other_errors_on_each_flag_set_are_not(machine, libraries):
    one = machine(otherwise=make(libraries["good"]))
    recipes = one.recipes()
    recipe = next(recipes)
    for number, _ in enumerate(NAMES[1:]):
        recipe = recipes.send(refusal(recipe, f"{one.root}/ascendc/a.asc:{number // 2}:5: error: expected ';'"))
    assert recipe.facts["bisheng_flags"] == NAMES[-1]


def test_a_flag_set_whose_kernels_compute_wrongly_is_not_tried_again(machine, libraries):
    one = machine(asc="echo tried; exit 1", asc_dirs=make(libraries["good"]))
    verdict = "The NPU kernels fail their self-check in float32: expected loss = 1, got 2."
    assert one.first(asc=verdict).facts["bisheng_flags_tried"] == [f"asc: error: {verdict}", "asc-dirs: works"]


def test_when_all_that_compile_compute_wrongly_each_is_told_and_nothing_is_compiled(machine):
    one = machine(otherwise="echo error: tried; exit 1")
    verdicts = {name: f"The NPU kernels fail their self-check: {number}." for number, name in enumerate(NAMES)}
    rejected = {name.replace("-", "_"): verdict for name, verdict in verdicts.items()}
    with pytest.raises(BuildError) as caught:
        one.first(**rejected)
    error = caught.value
    assert error.first_lines == tuple(f"{name}: error: {verdict}" for name, verdict in verdicts.items())
    assert "clean --rejected" in error.hint
    assert all(verdict in one.log for verdict in verdicts.values())
    del rejected["cce_one_unit"]
    with pytest.raises(BuildError) as caught:
        one.first(**rejected)
    assert caught.value.first_lines[-1] == "cce-one-unit: error: tried"
    assert "clean --rejected" in caught.value.hint, "what compiled got furthest"


def test_what_failed_with_the_kernels_got_further_than_what_failed_with_the_probe(machine, libraries):
    one = machine(asc=make(libraries["good"]))
    recipes = one.recipes()
    with pytest.raises(BuildError) as caught:
        recipes.send(refusal(next(recipes)))
    assert caught.value.command == "bisheng for asc"


def test_a_compiler_that_hangs_is_stopped_with_what_it_started_and_not_started_again(machine, tmp_path, monkeypatch):
    pids = tmp_path / "pids"

    class Impatient(subprocess.Popen):
        """Its time is over when the compiler has started something."""

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


NO_CSTDINT = "echo \"kernel_macros.h:24: fatal error: 'cstdint' file not found\"; exit 1"


def test_a_missing_cstdint_is_tried_again_with_the_root_of_gcc(machine, libraries):
    good = make(libraries["good"])
    lines = f'case "$*" in *--gcc-toolchain=*) {good};; *) {NO_CSTDINT};; esac'
    recipe = machine(asc=lines).first()
    libgcc = subprocess.run(["g++", "-print-file-name=libgcc.a"], capture_output=True, text=True).stdout
    assert f"--gcc-toolchain={libgcc.split('/lib/gcc/')[0]}" in recipe.steps[0].words["words"]
    assert len(recipe.facts["bisheng_flags_tried"]) == 2


def test_then_with_the_directories_that_gcc_itself_reads(machine, libraries):
    good = make(libraries["good"])
    lines = f'case "$*" in *-isystem*) {good};; *) {NO_CSTDINT};; esac'
    recipe = machine(asc=lines).first()
    assert len(recipe.facts["bisheng_flags_tried"]) == 3
    words: Sequence[str] = recipe.steps[0].words["words"]
    dirs = [Path(word.removeprefix("-isystem")) for word in words if word.startswith("-isystem")]
    assert any((path / "cstdint").is_file() for path in dirs)


def test_then_the_package_to_install_is_named(machine):
    with pytest.raises(BuildError) as caught:
        machine(otherwise=NO_CSTDINT).first()
    (line,) = caught.value.first_lines
    assert line.count("--gcc-toolchain=") == len(FLAG_SETS)
    assert "install" in caught.value.hint
    assert "apt-get install" in caught.value.hint
    assert "g++" in caught.value.hint or "libstdc++-" in caught.value.hint


def test_without_a_gcc_there_is_nothing_to_try_again(machine):
    assert list(hints.gcc_flags(["/no/such/g++"], os.environ)) == []


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("x.asc:1: fatal error: 'kernel_operator.h' file not found", "set ASCEND_HOME_PATH"),
        ('bisheng: error: unable to execute command: Executable "ld.lld" doesn\'t exist!', "beside {bisheng}"),
        ("libascend_hal.so: cannot open shared object file: No such file or directory", "driver"),
        ("bisheng: error while loading shared libraries: libLLVM-15.so: cannot open", "set_env.sh"),
        ("error: [Errno 8] Exec format error: 'bisheng'", "CANN for {machine}"),
        ("error: [Errno 13] Permission denied: 'bisheng'", "chmod +x {bisheng}"),
        ("bisheng: error: unable to execute command: Killed", "MAX_JOBS=1"),
        ("error: something new", "NPU_CE_JIT_BISHENG"),
    ],
)
def test_each_known_failure_has_its_cure(machine, output, hint):
    compiler = machine().compiler
    assert hint.format(bisheng=compiler.program, machine=MACHINE) in hints.of(output, compiler)


def test_a_cann_without_ascend_cs_headers_is_told_whatever_the_compiler_says(tmp_path):
    compiler = Compiler("bisheng", str(tmp_path), MACHINE)
    assert "install CANN's toolkit" in hints.of("error: something new", compiler)


# What packages have, by where their build rules look: 8.x, and 9.x, whose headers include each other by bare names.
PLACES = {
    "8": ("compiler", ("tikcpp/tikcfw", "tikcpp/tikcfw/interface", "tikcpp/tikcfw/impl"), "tikcpp/tikcfw"),
    "9": (
        f"{MACHINE}-linux",
        (
            "asc", "asc/include", "asc/include/basic_api", "asc/include/adv_api", "asc/include/utils", "asc/impl",
            "asc/impl/basic_api", "asc/impl/adv_api", "asc/impl/utils", "tikcpp/tikcfw",
        ),
        "asc/include",
    ),
}  # fmt: skip


@pytest.mark.parametrize("generation", PLACES)
def test_explicit_directories_are_those_of_either_layout(tmp_path, generation):
    home = tmp_path / "cann"
    below, names, api = PLACES[generation]
    for name in ("include", *(f"{below}/{name}" for name in names)):
        (home / name).mkdir(parents=True)
    (home / below / api / "kernel_operator.h").touch()
    compiler = Compiler("/cann/bisheng", str(home), MACHINE)
    assert set(compiler.api_dirs()) == {home / below / name for name in names}
    for flag_set in FLAG_SETS:
        commands = compiler.commands(flag_set, Path("/src"), ("a.asc", "b.asc"), "lib.so", ("--more",))
        includes = {word.removeprefix("-I") for word in commands[0].words if word.startswith("-I")}
        expected = {f"{home}/{name}" for name in ("include", *(f"{below}/{name}" for name in names))}
        assert includes == (expected if flag_set.needs_cann_dirs else set())
        libraries = (f"-L{home}/lib64", "-lruntime", "-lascendcl", "-lstdc++")
        assert (
            commands[-1].words[-4:] == libraries
            if flag_set.needs_cann_dirs
            else not set(libraries) & {*commands[-1].words}
        )
        assert all("--more" in command.words for command in commands)


def test_the_flag_sets_differ_as_they_say():
    compiler = Compiler("bisheng", "/cann", MACHINE)
    units = ("ascendc/a.asc", "ascendc/b.asc")
    paths = [f"/src/{unit}" for unit in units]
    for flag_set in FLAG_SETS:
        commands = compiler.commands(flag_set, Path("/src"), units, "lib.so")
        words = commands[-1].words
        assert {"-fPIC", "-shared"} <= set(words)
        assert ("-c" in commands[0].words) == (flag_set.form == "two steps")
        assert [command.sources for command in commands if command.sources] == (
            [(unit,) for unit in units] if flag_set.form == "two steps" else [units]
        )
        if flag_set.form == "two steps":
            assert "--cce-fatobj-link" in words
            assert commands[-1].objects == ("ascendc/a.asc.o", "ascendc/b.asc.o")
        else:
            begin = words.index(paths[0])
            assert list(words[begin : begin + 2]) == paths
            assert (words[begin - 1] == "-include") == (flag_set.form == "one unit")


def test_every_flag_set_has_what_public_builds_have():
    for flag_set in FLAG_SETS:
        assert {"-std=c++17", "-O2", "-fPIC"} <= set(flag_set.flags)
        macros = {flag.partition("=")[0] for flag in flag_set.flags if flag.startswith("-D")}
        names_the_cores = "-DNPU_CE_VECTOR=__vector__" in flag_set.flags
        assert names_the_cores == ("--npu-arch=dav-2201" in flag_set.flags), "which has both kinds"
        if "-xcce" in flag_set.flags:
            assert macros == {"-DNPU_CE_VECTOR", "-DTILING_KEY_VAR"}
            assert "-DTILING_KEY_VAR=0" in flag_set.flags
            assert "--cce-auto-sync" in flag_set.flags
            told = {flag.partition("=")[0] for before, flag in itertools.pairwise(flag_set.flags) if before == "-mllvm"}
            assert {"-cce-aicore-stack-size", "-cce-aicore-function-stack-size"} <= told
            assert "-cce-aicore-dcci-insert-for-scalar" in told
        else:
            assert macros == {"-DNPU_CE_VECTOR"}, "the driver adds the rest"
