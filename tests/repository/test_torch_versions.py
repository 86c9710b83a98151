# SPDX-License-Identifier: Apache-2.0
"""The program that tests several versions of torch: its table, and the environments that it makes."""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import compatibility
import nvidia_stand_ins
import pytest
import slim_torch
import torch_versions
from locations import TESTS_DIR
from torch_versions import ROWS, Row, section
from virtual_cann.environment import TORCH_NPU
from virtual_cann.layouts import LAYOUTS

from npu_ce_jit import torch_compat

LINES = {row: f"| {' | '.join(row.cells)} | all | 7 | 0 | 1 | 60 | 99 | 2026-01-01 |\n" for row in ROWS}


def test_rows_that_did_not_run_keep_their_lines() -> None:
    page = "above\n" + section("", LINES)
    ran = ROWS[2]
    new = LINES[ran].replace("2026-01-01", "2026-02-02")
    assert section(page, {ran: new}) == section("", {**LINES, ran: new})
    assert section(page).count("2026-01-01") == len(ROWS)
    assert "2026" not in section("")


def test_names_are_unique_and_unknown_ones_are_refused() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert torch_versions._chosen(["9.1+2.10.0", "2.7.1"]) == [Row("2.10.0", "3.12", "9.1"), ROWS[0]]
    assert torch_versions._chosen([]) == list(ROWS)
    with pytest.raises(SystemExit, match=r"no row '2\.6': expected some of 2\.7\.1 2\.8\.0"):
        torch_versions._chosen(["2.6"])


def test_the_rows_cover_the_range_that_the_package_says() -> None:
    minors = {tuple(map(int, row.torch.split(".")[:2])) for row in ROWS if not row.cann}
    first, last = torch_compat.OLDEST, torch_compat.NEWEST
    assert minors == {(2, minor) for minor in range(first[1], last[1] + 1)}
    for row in ROWS:
        assert not row.cann or (float(row.cann) in LAYOUTS and ".".join(row.torch.split(".")[:2]) in TORCH_NPU)


def test_each_feature_is_shown_by_a_test_that_every_row_runs() -> None:
    """Except features of frameworks, and those that only tests on an NPU demonstrate."""
    run = [TESTS_DIR / name for name in torch_versions.TESTS]
    left_out = [TESTS_DIR / name for name in torch_versions.LEFT_OUT]
    assert all(path.exists() for path in (*run, *left_out))
    elsewhere = ("npu", "on_npu", "patch", "repository")
    shown = [one for one in compatibility.shown() if one.file.relative_to(TESTS_DIR).parts[0] not in elsewhere]
    ran = {one.feature for one in shown if any(one.file.is_relative_to(path) for path in run)}
    ran -= {one.feature for one in shown if one.file in left_out}
    assert ran == {one.feature for one in shown}


def test_a_python_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(slim_torch.UnavailableError, match=r"no Python 3\.99 on PATH: install it, or name one with"):
        slim_torch.environment(tmp_path, "2.10.0", "3.99")
    assert list(tmp_path.iterdir()) == []


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "venv",
    [
        'mkdir -p "$3/bin"; echo "[Errno 28] No space left on device"; exit 1',
        # pip fails with a traceback
        'mkdir -p "$3/bin"; printf "#!/bin/sh\\necho Errno 28; exit 1" > "$3/bin/python"; chmod +x "$3/bin/python"',
        'mkdir -p "$3/bin"',  # no python: OSError
    ],
    ids=["venv", "pip", "neither"],
)
def test_an_environment_that_cannot_be_made_is_told_and_leaves_nothing(venv: str, tmp_path: Path) -> None:
    python = script(tmp_path / "python3.99", f'case "$1" in -I) echo 3.99; exit;; esac\n{venv}')
    cache = tmp_path / "cache"
    with pytest.raises(slim_torch.UnavailableError, match=r"Errno 28|No such file"):
        slim_torch.environment(cache, "2.10.0", "3.99", [python])
    assert [path.name for path in cache.iterdir()] == ["torch-2.10.0-python-3.99.lock"]


def test_a_disk_without_room_is_found_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0.7e9))
    python = script(tmp_path / "python3.99", f'echo 3.99; [ "$1" = -I ] || touch "{tmp_path}/was_called"')
    with pytest.raises(slim_torch.NoRoomError, match=r"^0\.7 GB free in /.*, \d\.\d needed$"):
        slim_torch.environment(tmp_path / "cache", "2.10.0", "3.99", [python])
    assert not (tmp_path / "was_called").exists()


def environments(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def both_ends(cache: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Row], None]) -> tuple[bool, list[str]]:
    """The result of `--ends`, and the rows that ran."""
    ran: list[str] = []

    def run(row: Row, arguments: argparse.Namespace) -> torch_versions.Outcome:
        made(row)
        assert not environments(cache), "the environment before is still there"
        (cache / f"torch-{row.torch}-python-{row.python}").mkdir()
        ran.append(row.name)
        return torch_versions.Outcome(7, [], Counter())

    monkeypatch.setattr(torch_versions, "run", run)
    arguments = argparse.Namespace(cache=cache, quick=True)
    complete = torch_versions.ran_both_ends(torch_versions.Report(arguments), arguments)
    return complete, ran


def no_python(row: Row) -> None:
    raise slim_torch.UnavailableError(f"no Python {row.python}")


def no_room(row: Row) -> None:
    raise slim_torch.NoRoomError("0.7 GB free in /somewhere, 3.4 needed")


def test_ends_go_on_to_the_next_that_can_be_had_and_keep_one_environment_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert both_ends(tmp_path, monkeypatch, lambda row: None) == (True, ["2.7.1", "2.15.0"])
    without_310 = both_ends(tmp_path, monkeypatch, lambda row: no_python(row) if row.python == "3.10" else None)
    assert without_310 == (True, ["2.8.0", "2.15.0"])
    assert "2.7.1: not run: no Python 3.10\n" in capsys.readouterr().out
    assert not environments(tmp_path)


def test_ends_that_no_room_prevents_are_told_plainly_and_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert both_ends(tmp_path, monkeypatch, no_room) == (True, [])
    said = capsys.readouterr().out
    assert "2.7.1: not run: 0.7 GB free in /somewhere, 3.4 needed\n" in said
    assert said.endswith("NO OTHER TORCH WAS TRIED: there is no room for an environment\n")
    assert both_ends(tmp_path, monkeypatch, no_python) == (False, []), "another reason is a failure"
    only_one = both_ends(tmp_path, monkeypatch, lambda row: no_room(row) if row.torch != "2.10.0" else None)
    assert only_one == (True, ["2.10.0"])  # the oldest available one is also the newest


def library(folder: Path, name: str, code: str, *options: str) -> None:
    (folder / "code.c").write_text(code)
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", *options, "code.c", "-o", name]
    subprocess.run(command, cwd=folder, check=True)
    (folder / "code.c").unlink()


def test_what_stands_in_for_a_library_has_its_functions_and_all_of_them_fail(tmp_path: Path) -> None:
    (tmp_path / "versions").write_text("libcutoy.so.3 { global: cuVersioned; local: *; };")
    library(tmp_path, "libcutoy.so.3", "int cuVersioned(void) { return 0; }", "-Wl,--version-script=versions")
    plain = [
        "int ncclPlain(void)", "const char* ncclGetErrorString(int e)",
        "int cuptiGetResultString(int e, const char** t)",
    ]  # fmt: skip
    library(tmp_path, "libncclplain.so.2", "".join(f"{function} {{ return 0; }}\n" for function in plain))
    code = """
    int cuVersioned(void);
    int versioned(void) { return cuVersioned(); }
    int plain(void) { return ncclPlain(); }
    const char* returned(void) { return ncclGetErrorString(3); }
    const char* written(void) { const char* text = 0; cuptiGetResultString(3, &text); return text; }
    """
    library(
        tmp_path, "libtorch_toy.so", "".join(f"{function};\n" for function in plain) + code,
        "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", "-L.", "-l:libcutoy.so.3", "-l:libncclplain.so.2",
    )  # fmt: skip
    (tmp_path / "versions").unlink()
    for name in ("libcutoy.so.3", "libncclplain.so.2"):
        (tmp_path / name).unlink()
    assert nvidia_stand_ins.make(tmp_path) == ["libcutoy.so.3", "libncclplain.so.2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["libcutoy.so.3", "libncclplain.so.2", "libtorch_toy.so"]
    toy = ctypes.CDLL(str(tmp_path / "libtorch_toy.so"), mode=ctypes.RTLD_LOCAL | 2)  # RTLD_NOW
    assert (toy.versioned(), toy.plain()) == (100, 100)
    for tells in (toy.returned, toy.written):  # torch throws for a null text
        tells.restype = ctypes.c_char_p
        assert b"stand-in" in tells()
