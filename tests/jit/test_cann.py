# SPDX-License-Identifier: Apache-2.0
"""Where CANN and its compiler are searched for, and the messages for one that is missing or broken."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from npu_ce_jit.jit.toolchain import cann as cann_module
from npu_ce_jit.jit.toolchain.bisheng import bisheng_identity
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings

MACHINE = f"{platform.machine()}-linux"
PLACE_OF = {8: "compiler/ccec_compiler/bin", 9: f"{MACHINE}/ccec_compiler/bin"}
VERSION_FILES = [
    (f"{MACHINE}/ascend_toolkit_install.info", "package_name=x\nversion=8.1.RC1\n", "8.1.RC1"),
    ("version.cfg", "# c\ntoolkit_running_version=[7.7.0.1.238:8.1.RC1]\n", "8.1.RC1"),
    ("compiler/version.info", "Version=7.7.0.1.238\nversion_dir=8.1.RC1\n", "8.1.RC1"),
    ("compiler/version.info", "Version=9.1.0\nversion_dir=cann\n", "9.1.0"),
    ("share/info/asc-devkit/version.info", "Version=9.1.0\n", "9.1.0"),
    ("runtime/version.info", "Version=9.0.0\n", "9.0.0"),
]


def program(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n", "utf-8")
    file.chmod(0o755)
    return file


def tree(home: Path, generation: int = 8, version: str = "8.1.RC1") -> Path:
    """A CANN with only the compiler, its linker and the file that states the version."""
    program(home / PLACE_OF[generation] / "bisheng")
    program(home / PLACE_OF[generation] / "ld.lld")
    (home / "runtime").mkdir()
    (home / "runtime/version.info").write_text(f"Version={version}\n", "utf-8")
    return home


def found(**variables: object) -> Toolchain:
    return Toolchain(Settings.from_env({name: str(value) for name, value in variables.items()}))


@pytest.fixture(autouse=True)
def _no_cann_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(cann_module, "_PREFIX", tmp_path / "usr")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ASCEND_HOME_PATH", "{home}"), ("ASCEND_TOOLKIT_HOME", "{home}"), ("ASCEND_OPP_PATH", "{home}/opp")],
)
def test_a_variable_says_where_cann_is(tmp_path, variable, value):
    home = tree(tmp_path / "cann")
    facts = found(**{variable: value.format(home=home)})
    assert facts.cann_home.value == str(home)
    assert facts.cann_home.where == variable


@pytest.mark.parametrize("name", ["CANN 9 $x", "Ascend's \u6607\u817e", "a:b"])
def test_any_name_will_do_for_its_directory(tmp_path, name):
    home = tree(tmp_path / name)
    facts = found(ASCEND_HOME_PATH=home)
    assert (facts.cann_home.value, facts.cann_version.value) == (str(home), "8.1.RC1")
    assert facts.bisheng.value == str(home / PLACE_OF[8] / "bisheng")


def test_the_first_of_the_variables_decides(tmp_path):
    first, second = tree(tmp_path / "1"), tree(tmp_path / "2")
    assert found(ASCEND_TOOLKIT_HOME=second, ASCEND_HOME_PATH=first).cann_home.value == str(first)
    assert found(ASCEND_OPP_PATH=first / "opp", ASCEND_TOOLKIT_HOME=second).cann_home.value == str(second)


@pytest.mark.parametrize("prefix", ["usr", "home/Ascend"])
def test_without_a_variable_the_installers_directories_are_tried_in_order(tmp_path, prefix):
    for name in ("latest", "cann", "ascend-toolkit/latest"):
        home = tree(tmp_path / prefix / name)
        assert found(HOME=tmp_path / "home").cann_home.value == str(home)


def test_another_cann_is_mentioned_but_a_link_to_the_same_is_not(tmp_path):
    home, other = tree(tmp_path / "usr/cann"), tree(tmp_path / "home/Ascend/cann")
    (tmp_path / "usr/latest").symlink_to(home)
    where = found(HOME=tmp_path / "home").cann_home.where
    assert where == f"the installer's directory; there is also {other}"


@pytest.mark.parametrize("variable", ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"])
@pytest.mark.parametrize("how", ["absent", "dangling", "loop", "file", "unreadable"])
def test_a_variable_that_leads_nowhere_is_told_and_not_replaced(tmp_path, monkeypatch, variable, how):
    tree(tmp_path / "usr/cann")
    home = tmp_path / "named"
    if how == "dangling":
        home.symlink_to(tmp_path / "gone")
    elif how == "loop":
        home.symlink_to(home)
    elif how == "file":
        home.touch()
    elif how == "unreadable":
        home.mkdir()
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(home) and access(path, mode))
    facts = found(**{variable: home})
    assert facts.cann_home.value is None
    assert f"{variable}: {home} " in facts.cann_home.where
    words = {"absent": "no directory", "dangling": "gone, which is not there", "file": "no directory"}
    words["loop"] = f"is a link to {home}, which is not there"
    assert words.get(how, "may not be read") in facts.cann_home.where
    assert "set_env.sh" in facts.cann_home.hint
    assert variable in facts.cann_home.hint
    for fact in (facts.cann_version, facts.cann_build, facts.npu_architecture, facts.bisheng, facts.lld):
        assert fact.value is None
        assert fact.where
        assert fact.hint


def test_a_dangling_link_of_the_installer_is_told_where_nothing_else_is(tmp_path):
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/cann").symlink_to(tmp_path / "removed")
    where = found().cann_home.where
    assert f"{tmp_path}/usr/cann is a link to {tmp_path}/removed, which is not there" in where
    home = tree(tmp_path / "usr/latest")
    assert found().cann_home.value == str(home)


@pytest.mark.parametrize(("name", "text", "version"), VERSION_FILES)
def test_cann_is_known_by_its_version_files_also_through_a_link(tmp_path, name, text, version):
    home = tmp_path / "8.1"
    (home / name).parent.mkdir(parents=True)
    (home / name).write_text(text, "utf-8")
    (tmp_path / "latest").symlink_to(home)
    (straight, through_link) = (found(ASCEND_HOME_PATH=path) for path in (home, tmp_path / "latest"))
    assert straight.cann_version.value == through_link.cann_version.value == version
    assert straight.cann_build.value == through_link.cann_build.value
    assert straight.npu_architecture.value == "dav-2201"


def test_the_build_of_cann_is_told_apart_but_not_where_it_was_installed(tmp_path):
    file = tree(tmp_path / "cann") / "runtime/version.info"
    builds = []
    for lines in ("path=/a\nV1", "path=/b\nV1", "path=/a\nV2"):
        file.write_text(f"Version=8.1.RC1\n{lines}\n", "utf-8")
        builds.append(found(ASCEND_HOME_PATH=tmp_path / "cann").cann_build.value)
    assert builds[0] == builds[1] != builds[2]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage", b"Version=\n", "a directory", None])
def test_a_version_file_that_states_nothing_is_named(tmp_path, content):
    home = tree(tmp_path / "cann")
    file = home / "runtime/version.info"
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "a directory":
        file.mkdir()
    facts = found(ASCEND_HOME_PATH=home)
    assert facts.cann_version.value is None
    assert (str(file) in facts.cann_version.where) == isinstance(content, bytes)
    assert str(home) in facts.cann_version.hint
    assert facts.bisheng.value is not None


@pytest.mark.parametrize("place", [*PLACE_OF.values(), "tools/ccec_compiler/bin", "tools/bisheng_compiler/bin", "bin"])
def test_bisheng_is_found_in_the_tree_of_either_generation(tmp_path, place):
    bisheng = program(tmp_path / "cann" / place / "bisheng")
    facts = found(ASCEND_HOME_PATH=tmp_path / "cann")
    assert facts.bisheng.value == str(bisheng)
    assert facts.lld.value is None
    assert str(bisheng) in facts.lld.where
    lld = program(bisheng.parent / "ld.lld")
    assert found(ASCEND_HOME_PATH=tmp_path / "cann").lld.value == str(lld)


def test_the_variable_comes_before_path_and_path_before_the_tree(tmp_path):
    home = tree(tmp_path / "cann")
    on_path, named = program(tmp_path / "bin/bisheng"), program(tmp_path / "my tools/cc")
    assert found(ASCEND_HOME_PATH=home, PATH="/nowhere").bisheng.where == "CANN's home"
    fact = found(ASCEND_HOME_PATH=home, PATH=tmp_path / "bin").bisheng
    assert fact.value == str(on_path)
    assert fact.where == f"PATH, but it is not in {home}"
    fact = found(ASCEND_HOME_PATH=home, PATH=tmp_path / "bin", NPU_CE_JIT_BISHENG=named).bisheng
    assert fact.value == str(named)


@pytest.mark.parametrize("how", ["absent", "dangling", "directory", "not executable"])
@pytest.mark.parametrize("who", ["NPU_CE_JIT_BISHENG", "tree"])
def test_a_bisheng_that_cannot_be_run_is_told(tmp_path, how, who):
    home = tree(tmp_path / "cann")
    bisheng = home / PLACE_OF[8] / "bisheng" if who == "tree" else tmp_path / "mine"
    bisheng.unlink(missing_ok=True)
    if how == "dangling":
        bisheng.symlink_to("gone")
    elif how == "directory":
        bisheng.mkdir()
    elif how == "not executable":
        bisheng.write_bytes(b"\x7fELF")
        bisheng.chmod(0o644)
    fact = found(ASCEND_HOME_PATH=home, **({} if who == "tree" else {who: bisheng})).bisheng
    assert fact.value is None
    assert how == "absent" or str(bisheng) in fact.where
    assert how != "not executable" or f"chmod +x {bisheng}" in fact.where
    assert "NPU_CE_JIT_BISHENG" in fact.hint
    assert who != "tree" or "toolkit" in fact.hint


def test_the_compiler_of_cann_itself_adds_nothing_to_its_version(tmp_path):
    home = tree(tmp_path / "8.1")
    (tmp_path / "latest").symlink_to(home)
    for place in (home, tmp_path / "latest"):
        facts = found(ASCEND_HOME_PATH=tmp_path / "latest", NPU_CE_JIT_BISHENG=place / PLACE_OF[8] / "bisheng")
        assert bisheng_identity(facts.bisheng, facts.cann_home) == "of CANN"


def test_another_compiler_is_known_by_its_own_cann_and_size_wherever_it_lies(tmp_path):
    home, other = tree(tmp_path / "mine"), tree(tmp_path / "other", version="8.3.RC1")
    bisheng = other / PLACE_OF[8] / "bisheng"

    def identity(file: Path) -> str:
        facts = found(ASCEND_HOME_PATH=home, NPU_CE_JIT_BISHENG=file)
        return bisheng_identity(facts.bisheng, facts.cann_home)

    assert "CANN 8.3.RC1" in identity(bisheng)
    assert str(tmp_path) not in identity(bisheng)
    moved = shutil.copytree(other, tmp_path / "elsewhere")
    assert identity(moved / PLACE_OF[8] / "bisheng") == identity(bisheng)
    bisheng.write_text("#!/bin/sh\n# another\n", "utf-8")
    assert identity(moved / PLACE_OF[8] / "bisheng") != identity(bisheng)
    alone = program(tmp_path / "alone/bisheng")
    assert identity(alone) == "10 bytes"
