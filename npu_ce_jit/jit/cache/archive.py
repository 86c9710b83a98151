# SPDX-License-Identifier: Apache-2.0
"""Entries of the cache in one file, for machines that have no compiler. A tar file of `<key name>/<entry>/<file>`."""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from npu_ce_jit.errors import NpuCeJitError
from npu_ce_jit.jit.cache import entry
from npu_ce_jit.jit.cache.entry import Artifact
from npu_ce_jit.jit.cache.key import is_name_of
from npu_ce_jit.jit.cache.permissions import UntrustedError, make_private_dir, write_private
from npu_ce_jit.jit.cache.staging import staging_dir
from npu_ce_jit.jit.cache.store import Store

_MEMBER = re.compile(r"([A-Za-z0-9.+_-]+)/(e-[0-9a-f]+)/([A-Za-z0-9._+-]+)")
_MOST_BYTES = 1 << 28  # of one file, so that a wrong archive does not fill memory; a library has some hundred KiB


class ArchiveError(NpuCeJitError):
    """A file is no archive of this cache, or holds something that may not go into one."""


class Unpacked(NamedTuple):
    """What became of one entry of an archive."""

    key_name: str
    entry_dir: Path
    is_new: bool


def pack(artifacts: Sequence[Artifact], file: Path) -> None:
    """Writes the archive, whole or not at all. Raises OSError; ArchiveError where there is nothing to pack.

    Owner, group and times of the files are left out, so that the archive says nothing about this machine's users.
    """
    if not artifacts:
        raise ArchiveError("The cache holds nothing to pack.", "Run: python -m npu_ce_jit build")
    partial = file.with_name(f".{file.name}.partial")
    try:
        with tarfile.open(partial, "w:gz") as archive:
            for artifact in artifacts:
                for path in sorted(artifact.entry_dir.iterdir()):
                    content = path.read_bytes()
                    member = tarfile.TarInfo(f"{artifact.entry_dir.parent.name}/{artifact.entry_dir.name}/{path.name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def unpack(file: Path, store: Store) -> Iterator[Unpacked]:
    """Puts the entries of an archive into the first root that can be written, each verified before it is published.

    Raises ArchiveError for a file that is damaged or no archive of ours, OSError where nothing can be written.
    """
    for (key_name, _), contents in _read(file).items():
        yield _unpack_entry(key_name, contents, file, store)


def _read(file: Path) -> dict[tuple[str, str], dict[str, bytes]]:
    """The files of each entry, by key name and entry name. All of it is read before anything is written."""
    entries: dict[tuple[str, str], dict[str, bytes]] = {}
    with file.open("rb") as stream:  # from here on, errors are of the archive's content, not of its place
        try:
            with tarfile.open(fileobj=stream, mode="r:*") as archive:
                for member in archive:
                    place, name = _place(member, file)
                    content = archive.extractfile(member)
                    assert content is not None, "a regular file has content"
                    entries.setdefault(place, {})[name] = content.read()
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
            raise ArchiveError(f"{file} is damaged or no archive: {error}.", "Copy it again.") from error
    if not entries:
        raise ArchiveError(f"{file} holds no entry.", "Make it with: python -m npu_ce_jit pack FILE")
    return entries


def _place(member: tarfile.TarInfo, file: Path) -> tuple[tuple[str, str], str]:
    match = _MEMBER.fullmatch(member.name)
    if match is None or match[1].startswith(".") or match[3].startswith(".") or not member.isreg():
        raise ArchiveError(f"{file} holds {member.name!r}, which is no file of an entry.", "Do not use it.")
    if member.size > _MOST_BYTES:
        raise ArchiveError(f"{file} holds {member.name!r} of {member.size} bytes.", "Do not use it.")
    return (match[1], match[2]), match[3]


def _unpack_entry(key_name: str, contents: Mapping[str, bytes], file: Path, store: Store) -> Unpacked:
    refusals: list[str] = []
    for root in store.build_roots:
        try:
            key_dir = root.make_layout_dir() / key_name
            make_private_dir(key_dir)
            with staging_dir(key_dir) as directory:
                unpacked_dir = directory / "entry"
                unpacked_dir.mkdir(mode=0o700)
                for name, content in contents.items():
                    write_private(unpacked_dir / name, content)
                return _publish(unpacked_dir, key_dir, file)
        except (OSError, UntrustedError) as error:
            refusals.append(f"{root.origin}: {error}")
    raise ArchiveError(
        f"No directory to unpack into ({'; '.join(refusals)}).",
        "Set NPU_CE_JIT_CACHE_DIR to a directory that you alone can write.",
    )


def _publish(unpacked_dir: Path, key_dir: Path, file: Path) -> Unpacked:
    try:
        artifact = entry.verified(unpacked_dir)
    except (FileNotFoundError, ValueError) as error:
        raise ArchiveError(f"{file} holds a damaged entry for {key_dir.name}: {error}.", "Copy it again.") from error
    if not is_name_of(key_dir.name, artifact.manifest["key"]):
        raise ArchiveError(f"{file} holds an entry that is not what {key_dir.name} says.", "Do not use it.")
    for known_dir in sorted(key_dir.glob(f"{entry.PREFIX}*")):
        with contextlib.suppress(OSError, ValueError, UntrustedError):
            if entry.verified(known_dir).manifest["libraries"] == artifact.manifest["libraries"]:
                return Unpacked(key_dir.name, known_dir, is_new=False)
    return Unpacked(key_dir.name, entry.make_visible(unpacked_dir, key_dir), is_new=True)
