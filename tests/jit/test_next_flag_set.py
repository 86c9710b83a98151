# SPDX-License-Identifier: Apache-2.0
"""A build whose set of flags accepts the probe and not the kernels, from the first command to the manifest. With ninja,
the real C++ compiler for the glue, and a shell script as bisheng."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from toy_package import Toy, needs_compiler, toy, write_npu_sources

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.bisheng import probe_kernels
from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS
from npu_ce_jit.jit.cache.entry import reject
from npu_ce_jit.jit.cache.key import cache_key
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.targets import npu_target

pytestmark = needs_compiler

NAMES = [flag_set.name for flag_set in FLAG_SETS]
# The bisheng script: it makes the same library of everything, unless it was told to refuse that output.
_BISHENG = """#!/bin/sh
all=" $* "
while [ "$1" != -o ]; do shift; done
out=$2
case "$all" in *ascendc/*|*' ascendc/'*) kind=kernels;; *) kind=probe;; esac
echo "$kind $out" >> {said}
{refusals}
cp {library} "$out"
"""


class Machine(NamedTuple):
    """An environment that builds the toy's NPU libraries."""

    directory: Path
    one: Toy

    def refuse(self, lines: str) -> None:
        """Makes bisheng run these shell lines first. `$out` is the output; `$kind` says what it is."""
        script = self.directory / "bisheng"
        names = {"said": str(self.directory / "said"), "library": str(self.directory / "everything.so")}
        quoted = {name: shlex.quote(path) for name, path in names.items()}
        script.write_text(_BISHENG.format(refusals=lines, **quoted), "utf-8")
        script.chmod(0o755)

    def kernels_of(self, *names: str) -> str:
        """A shell pattern that matches the outputs of these sets of flags."""
        return "|".join(f"*kernels-{name}-{self.one.key.digest}*" for name in names)

    @property
    def said(self) -> list[str]:
        return (self.directory / "said").read_text("utf-8").splitlines()

    @property
    def glue_compiles(self) -> int:
        return len((self.directory / "compiled").read_text("utf-8").splitlines())


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for bisheng's result, and for the libraries that the glue links."""
    directory = tmp_path_factory.mktemp("libraries")
    names = (*probe_kernels.LAUNCHERS, "toy_launch")
    source = "".join(f'extern "C" void {name}() {{}}\n' for name in names)
    (directory / "everything.cpp").write_text(source, "utf-8")
    (directory / "nothing.cpp").touch()
    for unit, library in (("everything", "everything"), ("nothing", "libtorch_npu"), ("nothing", "libascendcl")):
        words = ["g++", "-shared", "-fPIC", f"{unit}.cpp", "-o", f"{library}.so"]
        subprocess.run(words, cwd=directory, check=True)
    return directory


@pytest.fixture
def machine(tmp_path: Path, libraries: Path) -> Machine:
    for name, place in (("libtorch_npu.so", "torch_npu/lib"), ("libascendcl.so", "lib64"), ("everything.so", "")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(libraries / name, tmp_path / place / name)
    (tmp_path / "said").touch()
    (tmp_path / "compiled").touch()
    cxx = tmp_path / "cxx"
    real = shutil.which("g++") or shutil.which("c++")
    log = f'case " $* " in *\' -c \'*) echo "$*" >> {shlex.quote(str(tmp_path / "compiled"))};; esac'
    cxx.write_text(f'#!/bin/sh\n{log}\nexec {real} "$@"\n', "utf-8")
    cxx.chmod(0o755)
    one = toy(tmp_path, CXX=str(cxx))
    write_npu_sources(tmp_path / "toy")
    values = {
        "bisheng": str(tmp_path / "bisheng"), "cann_home": str(tmp_path), "npu_architecture": "dav-2201",
        "torch_npu_version": "2.13.0", "torch_npu_dir": str(tmp_path / "torch_npu"),
    }  # fmt: skip
    facts = {name: getattr(one.toolchain, name)._replace(value=value) for name, value in values.items()}
    toolchain = one.toolchain.replace(**facts)
    target = npu_target(one.settings, toolchain, Sources.of(tmp_path / "toy"))
    return Machine(tmp_path, one._replace(target=target, toolchain=toolchain, key=cache_key(target)))


LINK_ERROR = "echo 'ld.lld: error: duplicate symbol: g_tilingKey'; exit 1"


@pytest.mark.parametrize("left", [1, len(NAMES) - 1])
def test_a_real_link_that_fails_leaves_the_flag_set_and_the_glue_is_compiled_once(machine, caplog, left):
    caplog.set_level("INFO", "npu_ce_jit")
    machine.refuse(f'case "$out" in {machine.kernels_of(*NAMES[:left])}) {LINK_ERROR};; esac')
    artifact = machine.one.build()
    assert artifact.manifest["bisheng_flags"] == NAMES[left]
    refused = "takes the probe and not the kernels: ld.lld: error: duplicate symbol: g_tilingKey"
    tried = [*(f"{name}: {refused}" for name in NAMES[:left]), f"{NAMES[left]}: works"]
    assert artifact.manifest["bisheng_flags_tried"] == tried
    assert sorted(artifact.manifest["libraries"]) == sorted(
        ["libnpu_ce_jit_npu.so", f"libnpu_ce_kernels-{NAMES[left]}-{machine.one.key.digest}.so"]
    )
    assert machine.glue_compiles == 1
    log = (artifact.entry_dir / "build.log").read_text("utf-8")
    assert log.count("duplicate symbol: g_tilingKey") == left
    for name in NAMES[:left]:
        assert f"-o libnpu_ce_kernels-{name}-" in log, "the command that failed"
    assert caplog.text.count("duplicate symbol: g_tilingKey") == left, "and a person sees it while it happens"
    assert machine.one.find() == artifact


def test_a_unit_that_does_not_compile_by_itself_leaves_the_flag_set(machine):
    machine.refuse(
        f"case \"$out\" in *.asc.o) [ $kind = kernels ] && {{ echo 'toy.asc:1:1: error: x'; exit 1; }};; "
        f"*one-unit*) ;; *kernels*) {LINK_ERROR};; esac"
    )
    manifest = machine.one.build().manifest
    assert manifest["bisheng_flags"] == "cce-one-unit"
    failed = "cce-two-steps: takes the probe and not the kernels: toy.asc:1:1: error: x"
    assert manifest["bisheng_flags_tried"][-2] == failed


def test_a_library_of_the_kernels_that_does_not_open_leaves_the_flag_set(machine):
    machine.refuse(f'case "$out" in {machine.kernels_of("asc")}) echo garbage > "$out"; exit 0;; esac')
    manifest = machine.one.build().manifest
    assert manifest["bisheng_flags"] == "asc-dirs"
    first = manifest["bisheng_flags_tried"][0]
    assert "file too short" in first or "invalid ELF header" in first


def test_where_no_flag_set_takes_the_kernels_each_is_told_and_the_log_has_their_words(machine):
    first = f"{machine.kernels_of('asc')}) echo error: first; exit 1"
    machine.refuse(f'case "$out" in {first};; *kernels*) {LINK_ERROR};; esac')
    with pytest.raises(BuildError) as caught:
        machine.one.build()
    error = caught.value
    refused = "takes the probe and not the kernels:"
    assert error.first_lines == (
        f"asc: {refused} error: first",
        f"{', '.join(NAMES[1:])}: {refused} ld.lld: error: duplicate symbol: g_tilingKey",
    )
    log = Path(error.log_path).read_text("utf-8")
    assert Path(error.log_path).name == "failed-build.log"
    assert log.count("duplicate symbol: g_tilingKey") == len(NAMES) - 1
    assert error.command in log
    assert machine.glue_compiles == 1
    assert not machine.one.find()


def test_an_error_in_a_source_costs_three_compiles_and_is_told_as_one(machine):
    source = machine.directory / "toy/ascendc/toy.asc"
    words = f"{source}:3:5: error: expected ';'"
    machine.refuse(f'[ $kind = kernels ] && {{ echo "{words}"; exit 1; }}')
    with pytest.raises(BuildError, match="The NPU kernels did not compile") as caught:
        machine.one.build()
    assert caught.value.first_lines == (words,)
    assert "Mend the first error" in caught.value.hint
    assert [line.split()[0] for line in machine.said].count("kernels") == 3


def test_a_fault_of_the_glue_moves_on_to_no_other_flag_set(machine):
    (machine.directory / "toy/csrc/npu/toy.cpp").write_text("#error an edit\n", "utf-8")
    machine.refuse(":")
    target = npu_target(machine.one.settings, machine.one.toolchain, Sources.of(machine.directory / "toy"))
    with pytest.raises(BuildError, match="did not compile") as caught:
        machine.one._replace(target=target, key=cache_key(target)).build()
    assert "an edit" in caught.value.first_lines[0]
    assert {line.split()[1] for line in machine.said if line.startswith("kernels")} <= {
        f"libnpu_ce_kernels-asc-{cache_key(target).digest}.so"
    }


def test_a_disk_that_is_full_for_the_kernels_is_no_verdict_on_the_flag_set(machine):
    place = shlex.quote(str(machine.one.key_dir.parent))
    machine.refuse(
        f"case $PWD in {place}/*) [ $kind = kernels ] && {{ echo error: No space left on device; exit 1; }};; esac"
    )
    artifact = machine.one.build()
    assert artifact.manifest["bisheng_flags"] == "asc"
    assert not artifact.entry_dir.is_relative_to(machine.one.key_dir)


def test_a_rejected_flag_set_is_left_out_beside_those_that_fail(machine):
    machine.refuse(":")
    reject(machine.one.build(), "The NPU kernels fail their self-check: 1.")
    machine.refuse(f'case "$out" in {machine.kernels_of("asc-dirs")}) {LINK_ERROR};; esac')
    manifest = machine.one.build().manifest
    assert [reported.split(":")[0] for reported in manifest["bisheng_flags_tried"]] == NAMES[:3]
    assert manifest["bisheng_flags_tried"][0] == "asc: error: The NPU kernels fail their self-check: 1."
    assert manifest["bisheng_flags"] == NAMES[2]
