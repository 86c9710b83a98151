# SPDX-License-Identifier: Apache-2.0
"""A damaged entry never kills a process: it is reported once, set aside and rebuilt. Each use has its own process."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from places import obey_permissions
from toy_package import EXPORT, NO_KERNELS, Toy, compiler_script, exit_code, fork, needs_compiler, toy, wait_until

from npu_ce_jit.errors import LoadError
from npu_ce_jit.jit.cache import entry
from npu_ce_jit.jit.cache.entry import Artifact
from npu_ce_jit.jit.loader import load_or_build, open_library

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory) -> Path:
    tmp_path = tmp_path_factory.mktemp("whole")
    toy(tmp_path).build()
    return tmp_path / "cache"


@pytest.fixture
def built(tmp_path, whole_cache) -> tuple[Toy, Artifact]:
    shutil.copytree(whole_cache, tmp_path / "cache")
    one = toy(tmp_path)
    artifact = one.find()
    assert artifact is not None
    return one, artifact


def _load(one: Toy) -> Artifact:
    artifact = load_or_build(one.target, one.settings, one.toolchain, may_build=True)
    assert artifact is not None
    assert ctypes.CDLL(str(artifact.library)).toy() == 42
    return artifact


def _require_healed(one: Toy, caplog: pytest.LogCaptureFixture) -> None:
    """The first process reports the damage and builds; the next one finds nothing wrong."""

    def use(warnings: int) -> None:
        caplog.clear()
        _load(one)
        assert [record.levelname for record in caplog.records].count("WARNING") == warnings

    for warnings in (1, 0):
        assert exit_code(fork(lambda warnings=warnings: use(warnings))) == 0
    assert sorted(path.name[:3] for path in one.key_dir.iterdir() if path.name[:2] != "e-") == ["bad"]


@pytest.mark.parametrize("size", [0, 1, 64, 1024, 4096, "1/4", "1/2", "3/4", -1])
def test_a_truncated_library_is_built_again(built, caplog, size):
    one, artifact = built
    whole = artifact.library.stat().st_size
    if isinstance(size, str):
        size = whole * int(size[0]) // int(size[2])
    os.truncate(artifact.library, size if size >= 0 else whole + size)
    _require_healed(one, caplog)


def _zero_page(page: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[page * 4096 : (page + 1) * 4096] = bytes(len(content[page * 4096 : (page + 1) * 4096]))

    return change


def _flip(share: float) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[int(share * (len(content) - 1))] ^= 16

    return change


@pytest.mark.parametrize(
    "change",
    [_zero_page(0), _zero_page(1), _zero_page(2), _flip(0.0), _flip(0.3), _flip(0.6), _flip(1.0)],
    ids=["page 0", "page 1", "page 2", "bit at 0", "bit at 0.3", "bit at 0.6", "last bit"],
)
def test_a_library_with_a_zeroed_page_or_a_flipped_bit_is_built_again(built, caplog, change):
    one, artifact = built
    content = bytearray(artifact.library.read_bytes())
    before = bytes(content)
    change(content)
    assert bytes(content) != before
    artifact.library.write_bytes(content)
    _require_healed(one, caplog)


@pytest.mark.parametrize("state", ["missing", "empty", "no JSON", "another sum", "another key", "no library"])
def test_an_entry_whose_manifest_is_damaged_is_built_again(built, caplog, state):
    one, artifact = built
    file = artifact.entry_dir / "manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    if state == "missing":
        file.unlink()
    elif state == "empty":
        file.write_bytes(b"")
    elif state == "no JSON":
        file.write_bytes(file.read_bytes()[:-20])
    elif state == "another sum":
        (sums,) = manifest["libraries"].values()
        sums["sha256"] = sums["sha256"][::-1]
        file.write_text(json.dumps(manifest), "utf-8")
    elif state == "another key":
        file.write_text(json.dumps(manifest | {"key": "another"}), "utf-8")
    else:
        artifact.library.unlink()
    _require_healed(one, caplog)


def _fake_libstdcxx(directory: Path) -> list[str]:
    """The linker's arguments for a libstdc++ that defines a symbol version which no machine has."""
    directory.mkdir()
    (directory / "fake.map").write_text("GLIBCXX_3.4.999 { npu_ce_future; };\n", "ascii")
    (directory / "fake.cpp").write_text('extern "C" int npu_ce_future() { return 0; }\n', "ascii")
    words = ["g++", "-nodefaultlibs", "-shared", "-fPIC", "fake.cpp", "-o", "libstdc++.so.6"]
    words += ["-Wl,-soname,libstdc++.so.6", "-Wl,--version-script,fake.map"]
    subprocess.run(words, cwd=directory, check=True)
    return [str(directory / "libstdc++.so.6"), "-Wl,-u,npu_ce_future", "-Wl,--no-as-needed"]


# Libraries that another machine may link and this one refuses: dlerror's message, and how to link them.
UNLOADABLE = {
    "undefined symbol": ("undefined symbol: npu_ce_nowhere", lambda path: ["-Wl,-z,undefs", "-Wl,-u,npu_ce_nowhere"]),
    "newer libstdc++": ("version `GLIBCXX_3.4.999' not found", _fake_libstdcxx),
}


def _unloadable(tmp_path: Path, fault: str) -> tuple[Toy, str]:
    said, words_of = UNLOADABLE[fault]
    words = " ".join(words_of(tmp_path / "elsewhere"))
    body = f'#include "toy.h"\n{NO_KERNELS}{EXPORT} int toy() {{ return TOY; }}\n'
    name = {"undefined symbol": "npu_ce_nowhere", "newer libstdc++": "npu_ce_future"}[fault]
    body += f'#ifdef ELSEWHERE\nextern "C" int {name}(); int use = {name}();\n#endif\n'
    link = f'case "$*" in *-shared*) set -- "$@" {words};; esac'
    switch = f'[ -e {tmp_path}/here ] || {{ set -- "$@" -DELSEWHERE; {link}; }}'
    return toy(tmp_path, body, CXX=compiler_script(tmp_path, switch)), said


@pytest.mark.parametrize("fault", UNLOADABLE)
def test_a_library_that_this_machine_cannot_load_is_built_once_more_and_then_used(tmp_path, caplog, monkeypatch, fault):
    one, said = _unloadable(tmp_path, fault)
    one.build().entry_dir.rename(one.key_dir / "e-0")  # so that it is found before any other
    foreign = one.find()
    assert foreign is not None
    with pytest.raises(LoadError, match=said):
        open_library(foreign, {})
    (tmp_path / "here").touch()
    own = _load(one)
    assert own.entry_dir != foreign.entry_dir
    monkeypatch.setattr(entry, "_refused", set())  # as in a new process
    assert _load(one) == own
    assert caplog.text.count(said) == 1, "neither tried nor reported again"
    assert foreign.library.is_file(), "for the machines that it serves"


def test_a_library_that_cannot_be_loaded_is_passed_over_also_where_that_cannot_be_written_down(tmp_path):
    foreign, _ = _unloadable(tmp_path, "undefined symbol")
    foreign.build()
    (tmp_path / "here").touch()
    foreign.key_dir.chmod(0o500)
    one = foreign._replace(
        settings=foreign.settings._replace(cache_dir=tmp_path / "own", prebuilt_dirs=(tmp_path / "cache",))
    )

    def task():
        obey_permissions()
        assert _load(one).entry_dir.is_relative_to(tmp_path / "own")

    (tmp_path / "own").mkdir(mode=0o700)
    child = fork(task)
    wait_until(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    assert exit_code(child) == 0


@pytest.mark.parametrize("fault", UNLOADABLE)
def test_a_library_that_cannot_be_loaded_as_it_was_just_built_is_an_error_and_no_loop(tmp_path, caplog, fault):
    one, said = _unloadable(tmp_path, fault)
    with pytest.raises(LoadError, match=said):
        _load(one)
    assert len(list(one.key_dir.glob("e-*"))) == 1, "one build"
