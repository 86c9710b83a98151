# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit board` on the virtual device finds the answers that the package assumes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_npu  # noqa: F401
from locations import CHECKOUT

from npu_ce_jit import bootstrap
from npu_ce_jit.board import assumed
from npu_ce_jit.board.probes import Probes
from npu_ce_jit.board.questions import questions

SHOWN = CHECKOUT / "docs" / "first-board.json"
# The virtual device refuses to read bytes that the manual calls random, and is lost after that.
REFUSED = "pad_filler_unpadded_right"
# The next question, asked in a new process.
GRAPH = "npu_graph_step"


def start(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "npu_ce_jit", "board", str(file), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("board") / "board.json"
    done = start(file, "--seconds=5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""
    return file


@pytest.fixture(scope="module")
def report(file: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return report


def test_its_head_says_what_answered(report: dict[str, Any]) -> None:
    assert report["chip"]["name"] == "Ascend910B2"
    assert report["chip"]["vector cores"] == 48
    assert report["kernels"]["self-check"] == "passed"
    assert report["kernels"]["flags"] == "asc"
    assert report["kernels"]["tried"] == ["asc: works"]
    assert list(report["answers"]) == [question.name for question in questions()]


@pytest.mark.parametrize("name", [*assumed.COMPUTED, *assumed.PADDED, *assumed.LAST_BITS])
def test_the_chip_answers_as_assumed(name: str, report: dict[str, Any]) -> None:
    assert report["answers"][name].get("as assumed") is True, report["answers"][name]


@pytest.mark.parametrize("name", ["scalar_read_after_launch", "launches_keep_their_place"])
def test_launches_see_what_was_written_before_them(name: str, report: dict[str, Any]) -> None:
    assert report["answers"][name]["as assumed"] is True, report["answers"][name]


def test_every_cost_is_a_number(report: dict[str, Any]) -> None:
    for name, answer in report["answers"].items():
        if name in assumed.COSTS or name in ("gather_mask_stall", "losses"):
            assert answer.get("answer"), (name, answer)
            assert all(number > 0 for number in numbers_of(answer["answer"])), (name, answer["answer"])


def test_passes_over_the_same_bytes_keep_their_order() -> None:
    """A measurement takes several passes, the number of which depends on the machine's speed."""
    probes = Probes(bootstrap.load_all(may_build=True), torch.device("npu", 0))
    source, to = torch.rand(2048).npu(), torch.zeros(2048).npu()  # one piece for each core
    probes.copy(source, to, 4096, blocks=2, writes=True, passes=3)(probes.stream())
    torch.npu.synchronize()
    assert torch.equal(source.cpu(), to.cpu())


def numbers_of(value: Any) -> list[float]:
    """The times and rates. Differences of times are left out: they may be negative here, where times mean nothing."""
    if isinstance(value, dict):
        return [
            number for key, item in value.items() if key != "ns of a repeat, ns beside" for number in numbers_of(item)
        ]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_the_losses_beside_their_peers(report: dict[str, Any]) -> None:
    losses = report["answers"]["losses"]["answer"]
    ours = losses["cross_entropy, forward, float32, 16 x 1000"]["cross_entropy"]
    assert ours["value"] == pytest.approx(7.4, abs=0.5)  # ln 1000, plus half the variance of the logits
    assert ours["peak over logits"] == pytest.approx(0, abs=0.05)
    assert "aclnn" in losses["not run"]["F.cross_entropy"], "the virtual NPU has none of the peers' operators"


def test_what_a_device_does_not_survive_ends_no_other_question(report: dict[str, Any]) -> None:
    assert "507035" in report["answers"][REFUSED]["not asked"]
    assert report["answers"][GRAPH].get("as assumed") is True, report["answers"][GRAPH]
    assert report["summary"]["otherwise"] == []
    assert set(report["summary"]["not asked"]) == {REFUSED}


def test_it_tells_nothing_of_the_machine(file: Path) -> None:
    text = file.read_text("utf-8")
    private = {str(CHECKOUT), str(Path.home()), socket.gethostname(), sys.prefix}
    private |= {value for value in os.environ.values() if len(value) > 8 and ("/" in value or "@" in value)}
    assert [word for word in private if word in text] == []


def test_a_run_that_was_ended_goes_on_where_it_was(file: Path, report: dict[str, Any], tmp_path: Path) -> None:
    ended = tmp_path / "ended.json"
    left = {name: answer for name, answer in report["answers"].items() if name != "max_with_nan"}
    ended.write_text(json.dumps({**report, "answers": left, "date": "of the first"}), "utf-8")
    done = start(ended, "--resume")
    assert done.returncode == 0, done.stderr
    resumed = json.loads(ended.read_text("utf-8"))
    assert resumed["answers"] == report["answers"]
    assert resumed["date"] == "of the first"
    assert "max_with_nan: as assumed" in done.stderr
    assert "min_with_nan" not in done.stderr


def test_the_file_in_the_docs_has_these_answers(report: dict[str, Any]) -> None:
    shown = json.loads(SHOWN.read_text("utf-8"))
    assert list(shown) == list(report)
    assert list(shown["answers"]) == list(report["answers"])
    for name, answer in shown["answers"].items():
        if "as assumed" in answer:
            assert _without_times(answer) == _without_times(report["answers"][name])
        elif name in assumed.COSTS:
            assert answer["assumed"] == report["answers"][name]["assumed"]


def _without_times(answer: dict[str, Any]) -> dict[str, Any]:
    """The times of the virtual NPU mean nothing."""
    semantics = {name: value for name, value in answer["answer"].items() if not name.startswith("us, ")}
    return answer | {"answer": semantics}
