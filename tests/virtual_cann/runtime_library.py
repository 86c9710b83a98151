# SPDX-License-Identifier: Apache-2.0
"""Builds libascendcl.so of each generation, from the machine and the runtime, with g++."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from virtual_cann.cache import PreparationError, build_once
from virtual_cann.layouts import LAYOUTS, Layout

VIRTUAL_CANN = Path(__file__).resolve().parent

_COMPILE = ("-c", "-std=c++17", "-fPIC", "-pthread", "-ffp-contract=off")
_OPTIMISATION = {
    "machine": "-O2",
    "runtime": "-O1",
}  # every instruction goes through the machine; for the runtime, optimising costs only build time
_LINK = ("-shared", "-pthread", "-Wl,-soname,libascendcl.so", "-Wl,--no-undefined", "-ldl")


def runtime_library(cache: Path, acl_headers: Path, layout: Layout) -> Path:
    """The library, cached by the content of its sources and of torch_npu's ACL headers."""
    sources = [*_files("machine", ".cpp"), *_files("runtime", ".cpp")]
    sources.sort(key=lambda source: -source.stat().st_size)  # the longest first: none is left alone at the end
    headers = [*_files("machine", ".h"), *_files("runtime", ".h")]
    lacks = [name for layout in LAYOUTS.values() for name in layout.lacks]
    acl = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(acl_headers.rglob("*.h")))).hexdigest()
    words = (*_COMPILE, *_OPTIMISATION.values(), *_LINK, *lacks, acl, _compiler_identity())
    name = content_hash([*sources, *headers], " ".join(words))
    directory = build_once(
        cache / "libraries" / name,
        f"compiling its runtime, {len(sources)} files",
        lambda private: _build(private, sources, acl_headers),
    )
    return directory / layout.version / "libascendcl.so"


def content_hash(files: list[Path], also: str) -> str:
    """A hash of the files' content, independent of their location."""
    digest = hashlib.sha256(also.encode())
    for file in files:
        digest.update(f"\0{file.relative_to(VIRTUAL_CANN)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _files(directory: str, suffix: str) -> Iterator[Path]:
    yield from sorted((VIRTUAL_CANN / directory).glob(f"*{suffix}"))


def _compiler_identity() -> str:
    """Changes when g++ is replaced; does not start it."""
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        program = Path(directory or ".", "g++")
        if os.access(program, os.X_OK):
            status = program.stat()
            return f"{os.path.realpath(program)} {status.st_size} {status.st_mtime_ns}"
    raise PreparationError("the virtual CANN needs g++ on PATH: on Debian, apt-get install g++")


def _build(private: Path, sources: list[Path], acl_headers: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    include = ["-I", str(VIRTUAL_CANN), "-I", str(acl_headers.parent)]
    objects = [private / f"{source.parent.name}_{source.stem}.o" for source in sources]
    commands = [
        ["g++", *_COMPILE, _OPTIMISATION[source.parent.name], *include, str(source), "-o", str(object_)]
        for source, object_ in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(_run, commands))
    for layout in LAYOUTS.values():
        _link(private / layout.version, objects, layout.lacks)
    for object_ in objects:
        object_.unlink()


def _link(directory: Path, objects: list[Path], lacks: tuple[str, ...]) -> None:
    """Links the library of one generation; functions in `lacks` are not exported."""
    directory.mkdir()
    script = directory / "symbols.map"
    script.write_text("{ local: no_function; " + "".join(f"{name}; " for name in lacks) + "};\n", "utf-8")
    options = [*_LINK, f"-Wl,--version-script={script}", "-o", str(directory / "libascendcl.so")]
    _run(["g++", *map(str, objects), *options])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise PreparationError(f"{done.stderr}\nthe virtual CANN's runtime does not compile: {' '.join(command)}")
