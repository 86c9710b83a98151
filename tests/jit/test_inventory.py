# SPDX-License-Identifier: Apache-2.0
"""The cache's content, and what the maintenance commands do to it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from toy_package import Toy, exit_code, fork, needs_compiler, toy

from npu_ce_jit import bootstrap
from npu_ce_jit.cli import cache_commands
from npu_ce_jit.errors import ToolchainError
from npu_ce_jit.jit.cache import inventory
from npu_ce_jit.jit.cache.entry import Artifact, is_refused_here, refuse_here, remember
from npu_ce_jit.jit.cache.staging import staging_dir

pytestmark = needs_compiler


@pytest.fixture
def built(tmp_path) -> tuple[Toy, Artifact]:
    one = toy(tmp_path)
    return one, one.build()


def _copy(artifact: Artifact, name: str) -> Path:
    return Path(shutil.copytree(artifact.entry_dir, artifact.entry_dir.with_name(name)))


def _dead_builder(one: Toy) -> Path:
    def task():
        with staging_dir(one.key_dir):
            os._exit(9)

    assert exit_code(fork(task)) == 9
    (directory,) = one.key_dir.glob(".b-*")
    os.utime(directory, (time.time() - 60,) * 2)
    return directory


@pytest.fixture
def full(built) -> tuple[Toy, dict[str, Path]]:
    """A cache with one item of each kind."""
    one, artifact = built
    entry_dir = artifact.entry_dir.rename(one.key_dir / "e-0")
    remember(artifact._replace(entry_dir=entry_dir), "checked")
    (note,) = one.key_dir.glob("note-*")
    places = {
        "entry": entry_dir,
        "copy": _copy(artifact._replace(entry_dir=one.key_dir / "e-0"), "e-1"),
        "damaged": _copy(artifact._replace(entry_dir=one.key_dir / "e-0"), "e-2"),
        "untrusted": _copy(artifact._replace(entry_dir=one.key_dir / "e-0"), "e-3"),
        "set aside": _copy(artifact._replace(entry_dir=one.key_dir / "e-0"), "bad-4"),
        "rejected": _copy(artifact._replace(entry_dir=one.key_dir / "e-0"), "rejected-5"),
        "leftover": _dead_builder(one),
        "note": note,
    }
    os.truncate(places["damaged"] / "libnpu_ce_jit_cpu.so", 5)
    places["untrusted"].chmod(0o770)
    return one, places


def _clean(
    one: Toy,
    *,
    everything: bool = False,
    rejected: bool = False,
    older_than_days: float | None = None,
    dry_run: bool = False,
) -> int:
    return cache_commands.clean(
        one.store, everything=everything, rejected=rejected, older_than_days=older_than_days, dry_run=dry_run
    )


def test_each_thing_is_told_for_what_it_is(full):
    one, places = full
    with staging_dir(one.key_dir) as building:
        found = {item.kind: item.path for item in inventory.items(one.store)}
    assert found == {**places, "building": building}


def test_clean_removes_what_serves_nobody(full, capsys):
    one, places = full
    with staging_dir(one.key_dir) as building:
        assert _clean(one) == 0
        assert building.is_dir()
    reported = capsys.readouterr().out
    for kind, path in places.items():
        goes = kind in ("copy", "damaged", "set aside", "leftover")
        assert path.exists() is not goes, kind
        assert (f"removed {path} " in reported) is goes, kind
    assert one.find() is not None


def test_a_verdict_can_be_taken_back(full, capsys):
    one, places = full
    entry = Artifact(places["entry"], places["entry"] / "lib.so", {})
    refuse_here(entry)
    assert is_refused_here(entry)
    (refusal,) = set(one.key_dir.glob("note-*")) - {places["note"]}
    assert _clean(one, rejected=True) == 0
    assert {path for path in (places["rejected"], refusal) if path.exists()} == set()
    assert places["entry"].exists()
    assert places["note"].exists(), "that an entry passed is no verdict against it"
    assert f"removed {places['rejected']} (rejected, " in capsys.readouterr().out


def test_a_note_goes_with_its_entry(built):
    one, artifact = built
    copy = artifact._replace(entry_dir=_copy(artifact, "e-zzz"))
    for each in (artifact, copy):
        remember(each, "checked")
    (note,) = one.key_dir.glob(f"note-{artifact.entry_dir.name}-*")
    half = note.with_name(f".{note.name}")
    half.touch()  # left by a writer that was killed
    assert _clean(one) == 0
    assert set(one.key_dir.iterdir()) == {artifact.entry_dir, note, half}
    shutil.rmtree(artifact.entry_dir)
    assert _clean(one) == 0
    assert list(one.key_dir.iterdir()) == []


def test_what_disappears_while_it_is_measured_counts_nothing(built, monkeypatch):
    one, artifact = built
    monkeypatch.setattr(Path, "is_dir", lambda _: True)  # as if it had just existed
    gone = inventory.Item(one.store.roots[0], artifact.entry_dir.with_name("e-gone"), "entry")
    assert gone.size == 0
    assert gone._replace(path=artifact.entry_dir).size > artifact.library.stat().st_size


def test_a_dry_run_tells_the_same_and_removes_nothing(full, capsys):
    one, places = full
    assert _clean(one, dry_run=True) == 0
    reported = capsys.readouterr().out
    assert all(path.exists() for path in places.values())
    assert _clean(one) == 0
    assert capsys.readouterr().out == reported.replace("would remove", "removed").replace("would go", "removed")


def test_clean_all_leaves_only_what_is_not_ours_to_judge(full):
    one, places = full
    assert _clean(one, everything=True) == 0
    assert [path.name for path in one.key_dir.iterdir()] == [places["untrusted"].name]
    assert one.find() is None


def test_clean_by_age_counts_from_when_it_was_built(built):
    one, artifact = built
    os.utime(artifact.entry_dir, (time.time() - 3 * 86400,) * 2)
    assert _clean(one, older_than_days=4) == 0
    assert artifact.entry_dir.is_dir()
    assert _clean(one, older_than_days=2) == 0
    assert not artifact.entry_dir.exists()


def test_what_is_of_the_future_is_not_old(built):
    one, artifact = built
    os.utime(artifact.entry_dir, (time.time() + 3 * 86400,) * 2)
    assert _clean(one, older_than_days=2) == 0
    assert artifact.entry_dir.is_dir()
    assert one.find() == artifact
    assert _clean(one, everything=True) == 0
    assert not artifact.entry_dir.exists()


def test_a_read_only_root_is_never_cleaned(built, tmp_path):
    one, artifact = built
    reader = toy(tmp_path, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "own"), NPU_CE_JIT_PREBUILT_DIR=str(tmp_path / "cache"))
    assert _clean(reader, everything=True) == 0
    assert artifact.entry_dir.is_dir()
    assert one.find() is not None


def test_what_cannot_be_removed_is_told_and_the_rest_goes(full, capsys, monkeypatch):
    one, places = full
    real = inventory.remove

    def remove(item):
        if item.kind == "copy":
            raise PermissionError(13, "Permission denied", str(item.path))
        real(item)

    monkeypatch.setattr(inventory, "remove", remove)
    assert _clean(one) == 1
    assert f"cannot remove {places['copy']}: " in capsys.readouterr().out
    assert not places["damaged"].exists()


def test_verify_fails_where_something_is_damaged_and_says_how_to_go_on(full, capsys):
    one, places = full
    assert cache_commands.verify(one.store, may_colour=False) == 1
    said = capsys.readouterr().out
    for kind in ("damaged", "untrusted"):
        assert f"{kind}" in said
        assert str(places[kind]) in said
    assert "clean --broken" in said


def test_verify_of_a_good_or_an_empty_cache_is_0(built, tmp_path, capsys):
    one, _ = built
    assert cache_commands.verify(one.store, may_colour=False) == 0
    assert "1 entries, 0 bad" in capsys.readouterr().out
    assert (
        cache_commands.verify(toy(tmp_path, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "none")).store, may_colour=False) == 0
    )


def _session(one: Toy) -> bootstrap.State:
    return bootstrap.State(one.settings, one.toolchain, one.target.sources)


def test_what_this_installation_uses_is_packed_and_its_file_named_by_what_it_needs(built, tmp_path, capsys):
    one, artifact = built
    _copy(artifact, "e-other")
    (tmp_path / "out").mkdir()
    assert cache_commands.pack_into(_session(one), tmp_path / "out") == 0
    (file,) = (tmp_path / "out").iterdir()
    assert file.name == f"npu_ce_jit-{one.key.name}.tar.gz"
    reader = toy(tmp_path, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "own"))
    assert cache_commands.unpack_from(reader.store, file) == 0
    assert cache_commands.unpack_from(reader.store, file) == 0
    assert "already there" in capsys.readouterr().out
    found = reader.find()
    assert found is not None
    assert found.manifest == artifact.manifest


def test_build_into_a_directory_makes_a_cache_for_others(tmp_path, capsys):
    one = toy(tmp_path)
    assert cache_commands.build(_session(one), tmp_path / "for-all", None, verbose=True) == 0
    assert "[2/2]" in capsys.readouterr().out, "what ninja and the compiler said"
    reader = toy(tmp_path, NPU_CE_JIT_PREBUILT_DIR=str(tmp_path / "for-all"))
    found = reader.find()
    assert found is not None
    assert found.entry_dir.is_relative_to(tmp_path / "for-all")
    assert not (tmp_path / "cache").exists()


def test_build_for_a_chip_needs_what_builds_for_it(tmp_path, capsys):
    one = toy(tmp_path)
    assert cache_commands.build(_session(one), None, "Ascend910B2", verbose=False) == 1
    out = capsys.readouterr().out
    assert f"CPU kernels: {one.key_dir}" in out
    assert "NPU kernels: No torch_npu" in out
    with pytest.raises(ToolchainError, match="got Ascend310P3"):
        cache_commands.build(_session(one), None, "Ascend310P3", verbose=False)


def test_a_failed_build_is_told_and_exits_with_1(tmp_path, capsys):
    one = toy(tmp_path, "int broken(\n")
    assert cache_commands.build(_session(one), None, None, verbose=False) == 1
    assert "toy.cpp:1" in capsys.readouterr().out
