# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from toy_package import Toy, needs_compiler, toy

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.cache.entry import Artifact, knows, publish, remember
from npu_ce_jit.jit.cache.staging import staging_dir
from npu_ce_jit.jit.cache.store import Store, make_key_dir
from npu_ce_jit.settings import Settings

NO_DIRECTORY = "/proc/self/nothing"  # where even root can make no directory


@pytest.fixture
def stored(tmp_path) -> tuple[Toy, Artifact]:
    """An entry as a build publishes it. Its bytes are no library, which the store does not check."""
    one = toy(tmp_path)
    return one, _publish(one)


def _publish(one: Toy) -> Artifact:
    with staging_dir(make_key_dir(one.store.roots[0], one.key)) as directory:
        for name in ("lib.so", "other.so"):
            library = directory / name
            library.touch(mode=0o700)
            library.write_bytes(bytes(range(256)) * 64)
        return publish(directory, ("lib.so", "other.so"), (), {"key": one.key.text})


def test_what_was_published_is_found(stored):
    one, artifact = stored
    assert one.find() == artifact
    assert [one["bytes"] for one in artifact.manifest["libraries"].values()] == [256 * 64] * 2


def test_only_the_user_can_enter_what_the_store_makes(stored):
    one, artifact = stored
    for path in (one.store.roots[0].path, one.key_dir.parent, one.key_dir, artifact.entry_dir):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert not list(one.key_dir.glob(".b-*"))


@pytest.mark.parametrize("size", [0, 1, 64, 4096, 8192, 256 * 64 - 1, 256 * 64 + 1])
def test_a_library_of_another_size_is_not_used_and_set_aside(stored, size, caplog):
    one, artifact = stored
    os.truncate(artifact.library, size)
    assert one.find() is None
    assert f"lib.so has {{'bytes': {size}, " in caplog.text
    assert not artifact.entry_dir.exists()
    assert list(one.key_dir.glob("bad-*"))


@pytest.mark.parametrize("position", [0, 5000, 256 * 64 - 1])
@pytest.mark.parametrize("name", ["lib.so", "other.so"])
def test_one_changed_bit_is_noticed(stored, position, name):
    one, artifact = stored
    content = bytearray((artifact.entry_dir / name).read_bytes())
    content[position] ^= 1
    (artifact.entry_dir / name).write_bytes(content)
    assert one.find() is None


def test_what_is_remembered_of_an_entry_is_known_to_the_next_process(stored):
    one, artifact = stored
    fact, other = "checked on a chip", "checked on another"
    assert not knows(artifact, fact)
    for _ in range(2):
        remember(artifact, fact)
    assert knows(artifact, fact)
    assert not knows(artifact, other)
    assert not knows(_publish(one), fact)
    assert len(list(one.key_dir.glob("note-*"))) == 1
    assert one.find() is not None


@pytest.mark.parametrize("how", ["empty", "another text", "group-writable", "a link"])
def test_a_note_that_others_could_have_written_or_that_is_damaged_is_not_believed(stored, tmp_path, how):
    one, artifact = stored
    remember(artifact, "checked")
    (note,) = one.key_dir.glob("note-*")
    if how == "empty":
        note.write_bytes(b"")
    elif how == "another text":
        note.write_text("checke", "utf-8")
    elif how == "group-writable":
        note.chmod(0o660)
    else:
        note.rename(tmp_path / "elsewhere")
        note.symlink_to(tmp_path / "elsewhere")
    assert not knows(artifact, "checked")


def test_where_nothing_can_be_written_nothing_is_remembered_and_nothing_raised(stored):
    _, artifact = stored
    gone = artifact._replace(entry_dir=Path(NO_DIRECTORY) / "e-1")
    remember(gone, "checked")
    assert not knows(gone, "checked")


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"file": "lib.so"}', "\xff"])
def test_a_damaged_manifest_is_a_miss(stored, text):
    one, artifact = stored
    manifest = artifact.entry_dir / "manifest.json"
    if text is None:
        manifest.unlink()
    else:
        manifest.write_text(text, "latin-1")
    assert one.find() is None


def test_a_manifest_for_another_key_is_a_miss(stored):
    one, artifact = stored
    manifest = artifact.entry_dir / "manifest.json"
    manifest.write_text(json.dumps({**artifact.manifest, "key": "another"}), "utf-8")
    assert one.find() is None


def test_a_second_good_entry_takes_over_from_a_damaged_one(stored):
    one, artifact = stored
    other = _publish(one)
    first, second = sorted([artifact, other], key=lambda entry: entry.entry_dir)
    first.library.write_bytes(b"")
    assert one.find() == second


@pytest.mark.parametrize("what", ["root", "layout", "key", "entry", "manifest", "library"])
@pytest.mark.parametrize("how", ["group-writable", "foreign"])
def test_what_another_user_could_have_written_is_not_used(stored, what, how, caplog, monkeypatch):
    one, artifact = stored
    path = {
        "root": one.store.roots[0].path,
        "layout": one.key_dir.parent,
        "key": one.key_dir,
        "entry": artifact.entry_dir,
        "manifest": artifact.entry_dir / "manifest.json",
        "library": artifact.library,
    }[what]
    if how == "group-writable":
        path.chmod(0o770)
    elif os.getuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert one.find() is None
    assert ("can be written by others" if how == "group-writable" else "belongs to user") in caplog.text
    assert artifact.entry_dir.exists(), "what is not ours is left alone"


@pytest.mark.parametrize("what", ["entry", "library"])
def test_a_link_in_the_place_of_an_entry_or_a_file_is_not_used(stored, tmp_path, what):
    one, artifact = stored
    path = artifact.entry_dir if what == "entry" else artifact.library
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert one.find() is None


def test_the_root_may_be_a_link_and_is_left_through_its_target(stored, tmp_path):
    one, artifact = stored
    (tmp_path / "link").symlink_to(one.store.roots[0].path)
    through_link = Store.of(Settings(cache_dir=tmp_path / "link", tmp_dir=tmp_path))
    assert through_link.find(one.key) == artifact


@pytest.mark.parametrize(
    ("variables", "before_the_last"),
    [
        ({"NPU_CE_JIT_CACHE_DIR": "c", "XDG_CACHE_HOME": "x", "HOME": "h"}, ["c"]),
        ({"XDG_CACHE_HOME": "x", "HOME": "h"}, ["x/npu_ce_jit"]),
        ({"HOME": "h"}, ["h/.cache/npu_ce_jit"]),
        ({}, []),
        (
            {"NPU_CE_JIT_CACHE_DIR": "file", "XDG_CACHE_HOME": "file/x", "HOME": "h"},
            ["file", "file/x/npu_ce_jit", "h/.cache/npu_ce_jit"],
        ),
    ],
)
def test_roots_in_order(tmp_path, variables, before_the_last):
    (tmp_path / "file").touch()
    environment = {name: str(tmp_path / value) for name, value in variables.items()}
    roots = Store.of(Settings.from_env({"TMPDIR": "/t", "NPU_CE_JIT_PREBUILT_DIR": "/p:/q"} | environment)).roots
    assert [str(root.path) for root in roots] == [
        *(str(tmp_path / path) for path in before_the_last), "/p", "/q", f"/t/npu_ce_jit-{os.getuid()}",
    ]  # fmt: skip
    assert [str(root.path) for root in roots if root.read_only] == ["/p", "/q"]


@needs_compiler
@pytest.mark.parametrize("home", [NO_DIRECTORY, "a file", "read-only"])
def test_without_a_usable_home_the_build_goes_to_a_private_temporary_directory(tmp_path, home, monkeypatch):
    one = toy(tmp_path)
    if home == "a file":
        (tmp_path / "home").touch()
        home = str(tmp_path / "home")
    elif home == "read-only":
        home = str(tmp_path / "home")
        _make_read_only(Path(home), monkeypatch)
    one = one._replace(store=Store.of(Settings(home=Path(home), tmp_dir=tmp_path)))
    assert one.build().entry_dir.is_relative_to(tmp_path / f"npu_ce_jit-{os.getuid()}")
    ((_, refusal), (_, no_refusal)) = one.store.examine()
    assert refusal
    assert no_refusal is None


def _make_read_only(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(mode=0o500)
    if os.access(directory, os.W_OK):  # root ignores permissions, so the kernel's answer is simulated
        real_mkdir = os.mkdir

        def mkdir(path, mode=0o777, **options):
            if Path(path).is_relative_to(directory):
                raise OSError(30, "Read-only file system", str(path))
            real_mkdir(path, mode, **options)

        monkeypatch.setattr(os, "mkdir", mkdir)


@needs_compiler
def test_with_no_usable_root_at_all_the_error_lists_each_refusal(tmp_path):
    one = toy(tmp_path)
    store = Store.of(Settings(cache_dir=Path(NO_DIRECTORY), tmp_dir=Path(NO_DIRECTORY)))
    with pytest.raises(BuildError) as caught:
        one._replace(store=store).build()
    assert "NPU_CE_JIT_CACHE_DIR: " in caught.value.fact
    assert "TMPDIR: " in caught.value.fact
    assert "NPU_CE_JIT_CACHE_DIR" in caught.value.hint


def test_a_shared_directory_is_refused_with_the_command_that_mends_it(tmp_path):
    one = toy(tmp_path)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    ((root, refusal), _) = Store.of(Settings(cache_dir=shared, tmp_dir=tmp_path)).examine()
    assert str(refusal) == f"{root.path} can be written by others (run: chmod -R go-w {root.path})"
    assert one.find() is None


@needs_compiler
@pytest.mark.parametrize("mask", [0o002, 0o000])
def test_a_built_entry_is_trusted_whatever_the_umask(tmp_path, mask):
    one = toy(tmp_path)
    previous = os.umask(mask)
    try:
        artifact = one.build()
    finally:
        os.umask(previous)
    assert one.find() == artifact
