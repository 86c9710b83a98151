# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from toy_package import write_sources

from npu_ce_jit._version import __version__
from npu_ce_jit.errors import BuildError, ToolchainError
from npu_ce_jit.jit import targets as targets_module
from npu_ce_jit.jit.bisheng import flag_sets as flag_sets_module
from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS
from npu_ce_jit.jit.cache.key import cache_key
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.targets import board_target, cpu_target, npu_target
from npu_ce_jit.jit.toolchain import flags
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.jit.toolchain.finding import Finding
from npu_ce_jit.settings import Settings

SETTINGS = Settings()
TOOLCHAIN = Toolchain(Settings()).replace(
    system=Finding("system", "Linux", ""),
    machine=Finding("machine", "x86_64", ""),
    cpu_isa=Finding("CPU instructions", "avx2", ""),
    huge_pages=Finding("huge pages", "yes", ""),
    cxx=Finding("C++ compiler", "/usr/bin/g++", ""),
    ninja=Finding("ninja", "/usr/bin/ninja", ""),
    torch_version=Finding("torch", "2.13.0+cpu", ""),
    torch_git=Finding("torch git", "cf30153", ""),
    torch_dir=Finding("torch directory", "/site/torch", ""),
    torch_npu_version=Finding("torch_npu", "2.13.0 git 11", ""),
    torch_npu_dir=Finding("torch_npu directory", "/site/torch_npu", ""),
    cann_home=Finding("CANN", "/usr/local/Ascend/cann", ""),
    cann_version=Finding("CANN version", "9.1.0", ""),
    cann_build=Finding("CANN build", "aa", ""),
    npu_architecture=Finding("NPU architecture", "dav-2201", ""),
    bisheng=Finding("bisheng", "/usr/local/Ascend/cann/bin/bisheng", ""),
    lld=Finding("ld.lld", "/usr/local/Ascend/cann/bin/ld.lld", ""),
)
CONTENTS = {
    "ascendc/board/b.asc": "0",
    "ascendc/k.asc": "1",
    "ascendc/k.h": "2",
    "csrc/cpu/a.cpp": "4",
    "csrc/cpu/a.h": "5",
    "csrc/npu/n.cpp": "6",
    "csrc/npu/n.h": "7",
    "csrc/shared.cpp": "9",
    "csrc/shared.h": "10",
}


def _written(root_dir: Path, contents: dict[str, str] = CONTENTS) -> Sources:
    for name, content in contents.items():
        (root_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (root_dir / name).write_text(content, "utf-8")
    return Sources.of(root_dir)


_DIRECTORY = tempfile.TemporaryDirectory()
SOURCES = _written(Path(_DIRECTORY.name))
TARGETS = {"cpu": cpu_target, "npu": npu_target, "board": board_target}
both = pytest.mark.parametrize("name", ["cpu", "npu"])


def _key(name: str, settings: Settings = SETTINGS, toolchain: Toolchain = TOOLCHAIN, sources: Sources = SOURCES) -> str:
    return cache_key(TARGETS[name](settings, toolchain, sources)).text


def _with(**values: str | None) -> Toolchain:
    return TOOLCHAIN.replace(**{name: getattr(TOOLCHAIN, name)._replace(value=value) for name, value in values.items()})


def test_the_names_can_be_read():
    for target, parts in ((cpu_target, "x86_64-avx2"), (npu_target, "x86_64-cann9.1.0-dav_2201")):
        key = cache_key(target(SETTINGS, TOOLCHAIN, SOURCES))
        digest = hashlib.sha256(key.text.encode()).hexdigest()[:12]
        assert key.name == f"{__version__}-torch2.13.0+cpu-{parts}-{digest}"
    assert "/" not in cache_key(npu_target(SETTINGS, _with(cann_version="../../x"), SOURCES)).name


@both
@pytest.mark.parametrize(
    "changed",
    [{"torch_version": "2.13.1+cpu"}, {"torch_git": "0000000"}, {"system": "Plan9"}, {"machine": "aarch64"}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_changes_the_bytes_of_both_targets_changes_both_keys(name, changed):
    assert _key(name, toolchain=_with(**changed)) != _key(name)


@pytest.mark.parametrize(
    ("fact", "value", "names"),
    [
        ("cpu_isa", "avx512", ["cpu"]),
        ("torch_npu_version", "2.13.0 git 22", ["npu", "board"]),
        ("cann_version", "8.1.RC1", ["npu", "board"]),
        ("cann_version", None, ["npu", "board"]),
        ("cann_build", "bb", ["npu", "board"]),
        ("npu_architecture", "dav-9999", ["npu", "board"]),
    ],
)
def test_the_rest_changes_the_keys_of_its_targets_only(fact, value, names):
    changed = _with(**{fact: value})
    assert [one for one in TARGETS if _key(one, toolchain=changed) != _key(one)] == names


def test_the_cpu_library_is_the_same_with_cann_and_without():
    nothing = _with(
        torch_npu_version=None, torch_npu_dir=None, cann_home=None, cann_version=None, cann_build=None,
        npu_architecture=None, bisheng=None, lld=None,
    )  # fmt: skip
    cpu_only = Sources(SOURCES.root_dir, SOURCES.cpu.names)
    assert _key("cpu", toolchain=nothing, sources=cpu_only) == _key("cpu")


def test_a_bisheng_from_elsewhere_changes_the_key_and_cann_s_own_does_not(tmp_path):
    (tmp_path / "bisheng").touch()
    elsewhere = _with(bisheng=str(tmp_path / "bisheng"))
    assert _key("npu", toolchain=elsewhere) != _key("npu")
    assert _key("npu", toolchain=_with(bisheng=None)) == _key("npu"), "a machine that only runs finds what was built"


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ("ascendc/board/b.asc", ["board"]),
        ("ascendc/k.asc", ["npu"]),
        ("ascendc/k.h", ["npu"]),
        ("csrc/cpu/a.cpp", ["cpu"]),
        ("csrc/cpu/a.h", ["cpu"]),
        ("csrc/npu/n.cpp", ["npu"]),
        ("csrc/npu/n.h", ["npu"]),
        ("csrc/shared.cpp", ["cpu", "npu"]),
        ("csrc/shared.h", ["cpu", "npu"]),
    ],
)
def test_every_source_and_header_changes_the_keys_of_what_is_made_of_it(tmp_path, changed, names):
    sources = _written(tmp_path, CONTENTS | {changed: "changed"})
    assert [name for name in TARGETS if _key(name, sources=sources) != _key(name)] == names


@both
@pytest.mark.parametrize(
    "names",
    [(*SOURCES.names, "csrc/more.h"), tuple(name for name in SOURCES.names if name != "csrc/shared.h")],
    ids=["more", "fewer"],
)
def test_a_file_more_or_less_changes_the_key(tmp_path, name, names):
    sources = Sources(_written(tmp_path, CONTENTS | {"csrc/more.h": "4"}).root_dir, names)
    assert _key(name, sources=sources) != _key(name)


@both
def test_cxx_changes_the_key_only_where_the_user_set_it(name):
    assert _key(name, Settings(cxx="clang++")) != _key(name)
    assert _key(name, toolchain=_with(cxx="/usr/bin/clang++")) == _key(name)


@pytest.mark.parametrize(
    ("flag", "name"),
    [("COMPILE", "cpu"), ("LIBRARIES", "cpu"), ("NPU_COMPILE", "npu"), ("NPU_LINK", "npu"), ("NPU_LIBRARIES", "npu")],
)
def test_flags_change_the_key(monkeypatch, flag, name):
    before = _key(name)
    monkeypatch.setattr(flags, flag, ("-changed",))
    assert _key(name) != before


def test_flags_of_the_kernels_change_the_key(monkeypatch):
    cpu, npu = _key("cpu"), _key("npu")
    monkeypatch.setitem(flags.OF_ISA, "avx2", ("-mavx",))
    assert _key("cpu") != cpu
    changed = FLAG_SETS[-1]._replace(flags=("-O0",))
    monkeypatch.setattr(flag_sets_module, "FLAG_SETS", (*FLAG_SETS[:-1], changed))
    assert _key("npu") != npu


@both
def test_the_version_changes_the_key(monkeypatch, name):
    before = _key(name)
    monkeypatch.setattr(targets_module, "__version__", "9.9")
    assert _key(name) != before


@both
def test_paths_and_settings_that_change_no_byte_change_nothing(tmp_path, name):
    moved = _with(
        ninja="/opt/ninja", torch_dir="/venv/torch", torch_npu_dir="/venv/torch_npu", cann_home="/opt/cann",
        bisheng="/opt/cann/bin/bisheng", lld="/opt/cann/bin/ld.lld", cxx="/opt/g++",
    )  # fmt: skip
    other = Settings(
        build="lazy", cache_dir=Path("/c"), lock_timeout=1.0, log_level=10, huge_pages=False, max_jobs=1,
        home=Path("/h"), path="/p", environment={"A": "b"}, check_targets=True,
    )  # fmt: skip
    assert _key(name, other, moved, _written(tmp_path)) == _key(name)


def test_what_a_library_is_told_once_it_is_open_is_no_part_of_its_key():
    def of_huge_pages(value):
        return TOOLCHAIN.replace(huge_pages=TOOLCHAIN.huge_pages._replace(value=value))

    for settings, toolchain, cpu, npu in (
        (SETTINGS, TOOLCHAIN, {}, {}),
        (SETTINGS, of_huge_pages("no"), {"npu_ce_jit_set_huge_pages": 0}, {}),
        (SETTINGS, of_huge_pages("up to 192 MiB"), {"npu_ce_jit_set_huge_pages": 192}, {}),
        (SETTINGS._replace(check_targets=True), TOOLCHAIN, {}, {"npu_ce_jit_set_check_targets": True}),
    ):
        assert cpu_target(settings, toolchain, SOURCES).switches == cpu
        assert npu_target(settings, toolchain, SOURCES).switches == npu
        assert [_key(name, settings, toolchain) for name in TARGETS] == [_key(name) for name in TARGETS]


@both
def test_macros_change_the_key_whatever_their_order_and_none_of_them_adds_nothing_to_it(name):
    assert "define" not in _key(name)
    assert _key(name, sources=SOURCES.with_defines({})) == _key(name)
    keys = [
        _key(name, sources=SOURCES.with_defines(defines))
        for defines in ({"A": 1, "B": None}, {"B": None, "A": "1"}, {"A": 1}, {"A": 2, "B": None}, {"A": 1, "B": 1})
    ]
    assert keys[0] == keys[1]
    assert len({*keys, _key(name)}) == 5


def test_same_bytes_with_a_new_time_are_the_same_sources_and_new_bytes_with_an_old_time_are_not(tmp_path):
    write_sources(tmp_path)
    before = Sources.of(tmp_path).digests()
    header = tmp_path / "csrc" / "cpu" / "toy.h"
    status = header.stat()
    os.utime(header, (1, 1))
    assert Sources.of(tmp_path).digests() == before
    header.write_text("#define TOY 43\n", "utf-8")
    os.utime(header, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Sources.of(tmp_path).digests() != before


@pytest.mark.parametrize("missing", ["ascendc/k.asc", "csrc/npu/n.cpp"])
def test_kernels_without_glue_and_glue_without_kernels_are_no_npu_target(missing):
    assert Sources(SOURCES.root_dir, tuple(name for name in SOURCES.names if name != missing)).npu is None


def test_what_only_the_npu_s_key_needs_is_read_for_no_other(tmp_path):
    sources = _written(tmp_path)
    for name in ("ascendc/k.asc", "csrc/npu/n.cpp"):
        (tmp_path / name).unlink()
    assert _key("cpu", sources=sources) == _key("cpu")
    with pytest.raises(BuildError, match="A source cannot be read"):
        _key("npu", sources=sources)


def test_a_machine_whose_instructions_are_not_known_has_npu_kernels_and_no_cpu_kernels():
    unknown = _with(cpu_isa=None)
    assert _key("npu", toolchain=unknown) == _key("npu")
    with pytest.raises(ToolchainError, match="No CPU instructions"):
        _key("cpu", toolchain=unknown)


@pytest.mark.parametrize("fact", ["torch_npu_version", "cann_home"])
def test_a_machine_without_npu_software_has_cpu_kernels_and_no_npu_kernels(fact):
    without = _with(**{fact: None})
    assert _key("cpu", toolchain=without) == _key("cpu")
    with pytest.raises(ToolchainError, match=getattr(TOOLCHAIN, fact).name):
        _key("npu", toolchain=without)
