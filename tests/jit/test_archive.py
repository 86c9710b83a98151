# SPDX-License-Identifier: Apache-2.0
"""Packing a cache on one machine and unpacking it on another; a bad archive does no harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import stat
import tarfile
from pathlib import Path

import pytest
from toy_package import Toy, needs_compiler, toy

from npu_ce_jit.jit.cache.archive import ArchiveError, pack, unpack
from npu_ce_jit.jit.cache.entry import Artifact, verified

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[Path, Artifact]:
    tmp_path = tmp_path_factory.mktemp("packed")
    artifact = toy(tmp_path).build()
    pack([artifact], tmp_path / "cache.tar.gz")
    return tmp_path / "cache.tar.gz", artifact


def _elsewhere(tmp_path: Path) -> Toy:
    """A toy with the same key, another cache, and no compiler."""
    one = toy(tmp_path)
    return one._replace(toolchain=one.toolchain.replace(cxx=one.toolchain.cxx._replace(value=None)))


def test_a_machine_without_a_compiler_uses_what_was_packed_elsewhere(packed, tmp_path):
    file, original = packed
    one = _elsewhere(tmp_path)
    assert one.find() is None
    (unpacked,) = unpack(file, one.store)
    assert unpacked.is_new
    found = one.find()
    assert found is not None
    assert found.entry_dir == unpacked.entry_dir
    assert found.manifest == original.manifest
    assert found.library.read_bytes() == original.library.read_bytes()
    for path in (found.entry_dir, *found.entry_dir.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert [path.name[:2] for path in one.key_dir.iterdir()] == ["e-"]


def test_unpacking_again_changes_nothing(packed, tmp_path):
    one = _elsewhere(tmp_path)
    (first,) = unpack(packed[0], one.store)
    (second,) = unpack(packed[0], one.store)
    assert second == first._replace(is_new=False)


def test_an_archive_tells_nothing_of_the_user_who_packed_it(packed):
    with tarfile.open(packed[0]) as archive:
        for member in archive:
            assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)


def test_nothing_to_pack_is_an_error_with_the_cure_and_leaves_no_file(tmp_path):
    with pytest.raises(ArchiveError, match="npu_ce_jit build"):
        pack([], tmp_path / "cache.tar.gz")
    assert not list(tmp_path.iterdir())


def _archive(file: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def _changed(file: Path, into: Path, change) -> Path:
    """A copy of the archive, in which each member is replaced by change(name, content)."""
    with tarfile.open(file) as archive:
        members = [change(member.name, archive.extractfile(member).read()) for member in archive]
    return _archive(into, *((tarfile.TarInfo(name), content) for name, content in members))


def _refused(file: Path, tmp_path: Path) -> str:
    one = _elsewhere(tmp_path)
    with pytest.raises(ArchiveError) as caught:
        list(unpack(file, one.store))
    assert one.find() is None
    assert not list((tmp_path / "cache").glob("v1/*/*"))
    return caught.value.fact


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "key/e-1/../../../evil", "key/e-1/x/y", "key/.b-1/x", "key/e-1/.x", ".key/e-1/x", "x"],
)
def test_a_member_that_is_no_file_of_an_entry_is_refused(tmp_path, name):
    assert repr(name) in _refused(_archive(tmp_path / "a.tar", (tarfile.TarInfo(name), b"x")), tmp_path)
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_regular_file_is_refused(tmp_path, kind):
    member = tarfile.TarInfo("key-0/e-1/manifest.json")
    member.type, member.linkname = kind, "/etc/passwd"
    assert "no file of an entry" in _refused(_archive(tmp_path / "a.tar", (member, b"")), tmp_path)


def test_a_changed_library_is_refused(packed, tmp_path):
    def flip(name, content):
        return name, content[:-1] + bytes([content[-1] ^ 1]) if name.endswith(".so") else content

    assert "its manifest says" in _refused(_changed(packed[0], tmp_path / "a.tar", flip), tmp_path)


def test_an_entry_under_the_name_of_another_key_is_refused(packed, tmp_path):
    def rename(name, content):
        return name.replace("-torch", "-tarch").replace(packed[1].entry_dir.parent.name[-12:], "0" * 12), content

    assert "is not what" in _refused(_changed(packed[0], tmp_path / "a.tar", rename), tmp_path)


def test_an_entry_whose_key_was_changed_is_refused(packed, tmp_path):
    def other_key(name, content):
        if name.endswith("manifest.json"):
            content = json.dumps(json.loads(content) | {"key": "torch: 9"}).encode()
        return name, content

    assert "is not what" in _refused(_changed(packed[0], tmp_path / "a.tar", other_key), tmp_path)


@pytest.mark.parametrize("size", [0, 1, 100, -1000])
def test_a_truncated_archive_is_refused(packed, tmp_path, size):
    (tmp_path / "a.tar.gz").write_bytes(packed[0].read_bytes()[:size])
    assert str(tmp_path / "a.tar.gz") in _refused(tmp_path / "a.tar.gz", tmp_path)


@pytest.mark.parametrize("is_compressed", [True, False])
def test_random_flips_of_bits_give_an_error_or_what_verifies(packed, tmp_path, is_compressed):
    """In a compressed archive, most flips are detected when it is read; in a plain one they hit names, sizes, manifests
    and libraries.

    How many hit the padding behind the last file, which is never read, is chance.
    """
    content = packed[0].read_bytes()
    content = content if is_compressed else gzip.decompress(content)
    randomness = random.Random(20)
    one, file, refused = _elsewhere(tmp_path), tmp_path / "a.tar", 0
    for _ in range(150):
        flipped = bytearray(content)
        for _ in range(randomness.choice((1, 1, 2, 8))):
            flipped[randomness.randrange(len(flipped))] ^= 1 << randomness.randrange(8)
        file.write_bytes(flipped)
        try:
            unpacked = list(unpack(file, one.store))
        except ArchiveError:
            refused += 1
        else:
            assert all(verified(made.entry_dir).manifest["key"] == one.key.text for made in unpacked)
        layout_dir = one.store.roots[0].layout_dir
        for path in layout_dir.glob("*/*"):
            assert path.name.startswith("e-"), "half of an entry is left"
            verified(path)
        shutil.rmtree(layout_dir, ignore_errors=True)
    assert refused > (120 if is_compressed else 10), "the flips hit nothing"


def test_with_nowhere_to_unpack_each_root_says_why(packed, tmp_path):
    (tmp_path / "file").touch()
    one = toy(tmp_path, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "file"), TMPDIR="/proc/self")
    with pytest.raises(ArchiveError) as caught:
        list(unpack(packed[0], one.store))
    assert "NPU_CE_JIT_CACHE_DIR: " in caught.value.fact
    assert "TMPDIR: " in caught.value.fact


def test_where_the_file_cannot_be_written_none_is_left(packed, tmp_path, monkeypatch):
    def replace(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        pack([packed[1]], tmp_path / "cache.tar.gz")
    assert not list(tmp_path.iterdir())
