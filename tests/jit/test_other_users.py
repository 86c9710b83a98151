# SPDX-License-Identifier: Apache-2.0
"""Caches on volumes that others can write, root's caches, and root in a user's home: the message says what helps."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from other_users import (
    UID,
    as_another_user,
    in_user_namespace,
    needs_a_torch_that_all_can_read,
    needs_root,
    needs_user_namespaces,
    open_dir,
    run_hint,
)
from toy_package import Toy, copy_package, needs_compiler, run_python, toy

from npu_ce_jit import bootstrap
from npu_ce_jit.cli import cache_commands
from npu_ce_jit.errors import ToolchainError
from npu_ce_jit.jit.cache import inventory
from npu_ce_jit.jit.cache.permissions import UntrustedError
from npu_ce_jit.jit.loader import load_or_build
from npu_ce_jit.settings import Settings

__all__ = ["open_dir"]  # a fixture

pytestmark = needs_compiler


def _refusal(one: Toy) -> UntrustedError:
    _, refusal = next(one.store.examine())
    assert isinstance(refusal, UntrustedError)
    return refusal


def _make_group_writable(directory: Path) -> None:
    """As Kubernetes does at each start of a pod with an fsGroup."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(path.stat().st_mode | 0o060)


def test_one_command_mends_a_cache_of_one_s_own_that_was_made_writable(tmp_path, caplog):
    one = toy(tmp_path)
    artifact = one.build()
    _make_group_writable(tmp_path / "cache")
    assert one.find() is None
    assert str(_refusal(one)) in caplog.text
    run_hint(_refusal(one).hint)
    assert one.find() == artifact


@pytest.mark.parametrize("part", ["", "v1", "v1/*", "v1/*/e-*", "v1/*/e-*/manifest.json", "v1/*/e-*/*.so"])
def test_the_command_for_a_part_of_it_mends_all_below(tmp_path, caplog, part):
    one = toy(tmp_path)
    artifact = one.build()
    (path,) = (tmp_path / "cache").glob(part) if part else [tmp_path / "cache"]
    _make_group_writable(path if path.is_dir() else path.parent)
    assert one.find() is None
    (refused,) = one.store.refusals
    run_hint(refused)
    assert one.find() == artifact


def test_a_cache_that_others_can_write_is_told_by_verify(tmp_path, capsys):
    one = toy(tmp_path)
    one.build()
    (tmp_path / "cache").chmod(0o777)
    (item,) = inventory.items(one.store)
    assert (item.kind, item.path) == ("untrusted", tmp_path / "cache")
    assert cache_commands.verify(one.store, may_colour=False) == 1
    assert "can be written by others" in capsys.readouterr().out


@needs_root
@needs_a_torch_that_all_can_read
@pytest.mark.parametrize("mode", [0o777, 0o2777, 0o1777])
def test_on_a_volume_of_root_s_that_all_can_write_one_s_own_directory_serves(open_dir, mode):
    volume = open_dir / "cache"
    volume.mkdir()
    volume.chmod(mode)
    toy(open_dir).build()  # imports modules that the other user cannot read

    def task() -> None:
        refusal = _refusal(toy(open_dir / "user", NPU_CE_JIT_CACHE_DIR=str(volume), TMPDIR=str(volume)))
        (own,) = re.findall(r"^Set NPU_CE_JIT_CACHE_DIR=(\S+), a directory of your own below it$", refusal.hint)
        one = toy(open_dir / "user", NPU_CE_JIT_CACHE_DIR=own, TMPDIR=str(volume))
        artifact = one.build()
        assert artifact.entry_dir.is_relative_to(own)
        assert own.startswith(str(volume))
        assert one.find() == artifact
        _make_group_writable(Path(own))
        run_hint(_refusal(one).hint)
        assert one.find() == artifact

    as_another_user(task)


@needs_root
def test_a_volume_of_root_s_that_this_user_cannot_write_is_root_s_to_mend(open_dir):
    volume = open_dir / "cache"
    volume.mkdir()
    os.chown(volume, 0, UID + 1)
    volume.chmod(0o775)

    def task() -> None:
        refusal = _refusal(toy(open_dir / "user", NPU_CE_JIT_CACHE_DIR=str(volume)))
        assert refusal.hint == f"Have user 0 run: chmod -R go-w {volume}"

    as_another_user(task)


def _prebuilt(open_dir: Path) -> Path:
    """A directory from `build --into`, made by root under a strict umask, which everybody can read."""
    one = toy(open_dir)
    session = bootstrap.State(one.settings, one.toolchain, one.target.sources)
    previous = os.umask(0o077)
    try:
        assert cache_commands.build(session, open_dir / "prebuilt", None, verbose=False) == 0
    finally:
        os.umask(previous)
    return open_dir / "prebuilt"


def _user_of(prebuilt: Path, **variables: str) -> Toy:
    open_dir = prebuilt.parent
    variables = {"NPU_CE_JIT_CACHE_DIR": "", "NPU_CE_JIT_PREBUILT_DIR": str(prebuilt)} | variables
    return toy(open_dir / "user", **variables)


@needs_root
def test_what_root_has_built_for_all_serves_another_user(open_dir):
    prebuilt = _prebuilt(open_dir)

    def task() -> None:
        artifact = _user_of(prebuilt).find()
        assert artifact is not None
        assert artifact.entry_dir.is_relative_to(prebuilt)

    as_another_user(task)


@needs_root
@needs_user_namespaces
def test_in_a_user_namespace_what_is_said_of_root_s_prebuilt_cache_makes_it_serve(open_dir):
    prebuilt = _prebuilt(open_dir)

    def task() -> None:
        one = _user_of(prebuilt, NPU_CE_JIT_BUILD="never")
        assert one.find() is None
        with pytest.raises(ToolchainError, match=r"belongs to user 65534.* run cp -r .*NPU_CE_JIT_BUILD=never"):
            load_or_build(one.target, one.settings, one.toolchain, may_build=False)
        (refusal,) = one.store.refusals
        copy = f"{open_dir}/user/mine"
        run_hint(refusal.partition(", and name")[0].replace("run cp", "run: cp").replace(" DIR", f" {copy}"))
        artifact = _user_of(prebuilt, NPU_CE_JIT_PREBUILT_DIR=copy).find()
        assert artifact is not None
        assert artifact.entry_dir.is_relative_to(copy)

    in_user_namespace(task)


@needs_root
def test_a_prebuilt_cache_that_cannot_be_read_is_told(open_dir):
    prebuilt = _prebuilt(open_dir)
    prebuilt.chmod(0o700)

    def task() -> None:
        one = _user_of(prebuilt)
        assert one.find() is None
        assert "Permission denied" in one.store.refusals[0]

    as_another_user(task)


REPORT = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import npu_ce_jit
print(json.dumps([npu_ce_jit.info()["backend"], *(str(one.message) for one in caught if "npu_ce" in str(one.message))]))
"""


@pytest.mark.parametrize("fault", ["absent", "writable", "of another CPU"])
def test_the_reference_in_the_place_of_a_named_cache_is_never_silent(tmp_path, fault):
    site_dir = copy_package(tmp_path / "site")
    prebuilt = tmp_path / "prebuilt"
    variables = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), "NPU_CE_JIT_CPU_ISA": ""}
    build = "import sys; from npu_ce_jit.cli import main; sys.exit(main.main(['build', '--into', '{}']))"
    if fault != "absent":
        isa = "baseline" if fault == "of another CPU" else ""
        run_python(site_dir, build.format(prebuilt), **variables | {"NPU_CE_JIT_CPU_ISA": isa}, NPU_CE_JIT_BUILD="lazy")
    if fault == "writable":
        prebuilt.chmod(0o777)
    variables |= {"NPU_CE_JIT_BUILD": "never", "NPU_CE_JIT_PREBUILT_DIR": str(prebuilt)}
    said = run_python(site_dir, REPORT, **variables).stdout
    assert said.startswith('["reference", "npu_ce_jit: The slower reference implementation is used. '), said
    assert "NPU_CE_JIT_PREBUILT_DIR" in said
    why = {
        "absent": "nothing of it was built",
        "writable": "chmod -R go-w",
        "of another CPU": "CPU instructions changed",
    }
    assert why[fault] in said


@needs_root
@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "NPU_CE_JIT_CACHE_DIR", "TMPDIR"])
@pytest.mark.parametrize("has_cache", [False, True])
def test_nothing_of_root_s_appears_in_a_user_s_home(tmp_path, monkeypatch, caplog, variable, has_cache):
    caplog.set_level("INFO", "npu_ce_jit")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setitem(Settings._field_defaults, "tmp_dir", tmp_path / "tmp")
    home = tmp_path / "home"
    (home / ".cache" / ("npu_ce_jit" if has_cache else "")).mkdir(parents=True)
    for path in (home, *home.rglob("*")):
        os.chown(path, UID, UID)
    places = {"HOME": home, "XDG_CACHE_HOME": home / ".cache", "NPU_CE_JIT_CACHE_DIR": home / "mine", "TMPDIR": home}
    variables = {"NPU_CE_JIT_CACHE_DIR": "", "TMPDIR": str(tmp_path / "tmp")}
    if variable != "XDG_CACHE_HOME":  # sudo keeps it even where it sets HOME
        variables["HOME"] = str(home)
    one = toy(tmp_path, **variables | {variable: str(places[variable])})
    artifact = one.build()
    assert one.find() == artifact
    assert artifact.entry_dir.is_relative_to(tmp_path / "tmp")
    assert not [path for path in home.rglob("*") if path.lstat().st_uid != UID]
    assert (
        "is another user's, and nothing of root's is left there (start the program with root's own HOME" in caplog.text
    )
