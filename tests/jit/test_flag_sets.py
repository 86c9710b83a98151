# SPDX-License-Identifier: Apache-2.0
"""Which set of flags a build uses, and the content of each set."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest
from bisheng_scripts import MACHINE, NAMES, libraries, machine, make, refusal
from toy_package import needs_compiler

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.bisheng import probe_kernels
from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS, Compiler
from npu_ce_jit.jit.toolchain.compiler_output import BUILD_LOG

pytestmark = needs_compiler


@pytest.mark.parametrize("name", NAMES)
def test_the_first_flag_set_that_works_is_taken(machine, libraries, name):
    recipe = machine(**{name.replace("-", "_"): make(libraries["good"])}).first()
    assert recipe.facts["bisheng_flags"] == name
    assert [reported.partition(":")[0] for reported in recipe.facts["bisheng_flags_tried"]] == NAMES[
        : NAMES.index(name) + 1
    ]
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
    """A reported fault: one unit links, but several define the same symbol."""
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


# Where packages have what build rules look for: 8.x, and 9.x, whose headers include each other by bare names.
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
            reported = {
                flag.partition("=")[0] for before, flag in itertools.pairwise(flag_set.flags) if before == "-mllvm"
            }
            assert {"-cce-aicore-stack-size", "-cce-aicore-function-stack-size"} <= reported
            assert "-cce-aicore-dcci-insert-for-scalar" in reported
        else:
            assert macros == {"-DNPU_CE_VECTOR"}, "the driver adds the rest"
