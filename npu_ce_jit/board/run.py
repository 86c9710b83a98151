# SPDX-License-Identifier: Apache-2.0
"""Asks all questions and writes the file of answers, which is whole after each of them.

When a question fails, the reason goes into the file, and the next is asked. After a question that takes the device
down, this process can use the device no more: a new process goes on from the file.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from npu_ce_jit import bootstrap
from npu_ce_jit._version import __version__
from npu_ce_jit.bench.timing import undisturbed
from npu_ce_jit.board import answers
from npu_ce_jit.board.probes import Probes
from npu_ce_jit.board.questions import Board, Question, questions
from npu_ce_jit.errors import BuildError, NpuCeJitError, SelfCheckError
from npu_ce_jit.npu import require_npu, require_supported_chip
from npu_ce_jit.session import State

_SECONDS = 90.0
_MOST_SAID = 2000  # characters
_MOST_FLAGS = 10  # sets of flags, each tried in a new process
_BEGUN = {"not asked": "the process ended while it was asked"}


@undisturbed()
def run_board(arguments: list[str]) -> int:
    """Asks, and writes the file. 0 where the self-check passed and no answer differs from an assumption."""
    parser = argparse.ArgumentParser(
        prog="npu_ce_jit board",
        description="Builds the kernels, checks them, and asks the NPU here what only a chip can answer: what it "
        "computes where the manual is silent, and what launches, copies and the losses cost. The answers go into one "
        "file, beside what is assumed of them; it tells nothing else of the machine, and is to be sent to the project.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to write, such as board.json")
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help="about how long to measure, beside builds (default: 90)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="ask only what FILE, from a run that was ended, has no answer to"
    )
    parsed = parser.parse_args(arguments)
    seconds: float = parsed.seconds
    report: dict[str, Any] = json.loads(parsed.file.read_text("utf-8")) if parsed.resume else {"what": answers.WHAT}
    answers.write(parsed.file, report)  # fails now, and not after a minute, if the file cannot be written
    device = require_npu()
    require_supported_chip(torch.get_device_module(device).get_device_name(device), "Run it on one of these.")
    _say("building the kernels, unless they are there")
    session, problem = _checked(device)
    if isinstance(problem, SelfCheckError) and len(report.get("failed self-checks", ())) < _MOST_FLAGS:
        report.setdefault("failed self-checks", []).append(_in_words(problem))
        answers.write(parsed.file, report)
        return _go_on(
            "its kernels compute wrongly; a new process builds with the next flags", parsed.file, parsed.seconds
        )
    board = _board(session, device)
    report = {**_head(session, problem, board), "answers": {}, **report}
    _say(f"self-check: {report['kernels']['self-check']}")
    began = time.perf_counter()
    if not _ask_all(board, report, parsed.file, seconds):
        left = max(1.0, seconds - (time.perf_counter() - began))
        return _go_on("the device does not answer any more; a new process goes on", parsed.file, left)
    return _summarise(report, parsed.file)


def _checked(device: torch.device) -> tuple[State, NpuCeJitError | None]:
    """The session with the kernels of the loss, and what is wrong with them, or None."""
    session = bootstrap.load_all(may_build=True)
    if session.npu.state == "none":
        return session, session.npu.problem
    return bootstrap.try_npu(device)


def _board(session: State, device: torch.device) -> Board:
    probes: Probes | NpuCeJitError
    try:
        probes = Probes(session, device)
    except NpuCeJitError as error:
        probes = error
    properties = torch.get_device_module(device).get_device_properties(device)
    return Board(device, int(properties.vector_core_num), probes)


def _head(session: State, problem: NpuCeJitError | None, board: Board) -> dict[str, Any]:
    """The head of the report: the chip, the versions and the kernels."""
    properties = torch.get_device_module(board.device).get_device_properties(board.device)
    kernels: dict[str, Any] = {"self-check": "passed" if problem is None else _in_words(problem)}
    if session.npu.artifact is not None:
        manifest = session.npu.artifact.manifest
        kernels |= {
            "flags": manifest.get("bisheng_flags"),
            "tried": manifest.get("bisheng_flags_tried"),
            "seconds": manifest.get("seconds"),
        }
    return {
        "what": answers.WHAT,
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d"),
        "chip": {"name": properties.name, "vector cores": board.cores, "MiB": properties.total_memory >> 20},
        "versions": _versions(session),
        "kernels": kernels,
    }


def _go_on(why: str, file: Path, seconds: float) -> int:
    """Goes on from the file in a new process, and returns its exit code."""
    _say(why)
    command = [sys.executable, "-m", "npu_ce_jit", "board", str(file), f"--seconds={seconds:.0f}", "--resume"]
    return subprocess.run(command, check=False).returncode  # noqa: S603  this package's own


def _ask_all(board: Board, report: dict[str, Any], file: Path, seconds: float) -> bool:
    """Asks what has no answer yet. Returns whether the device still works."""
    asked: dict[str, Any] = report["answers"]
    all_questions = list(questions())
    for number, question in enumerate(all_questions, 1):
        if question.name in asked:
            continue
        asked[question.name] = _BEGUN
        answers.write(file, report)
        board.give(question.share * seconds)
        asked[question.name] = answer = _ask(board, question)
        answers.write(file, report)
        _say(f"{number}/{len(all_questions)} {question.name}: {_verdict(answer)}")
        if "not asked" in answer and not _works(board.device):
            return False
    return True


def _ask(board: Board, question: Question) -> dict[str, Any]:
    expected = {} if question.assumed is None else {"assumed": question.assumed}
    try:
        answer = question.ask(board)
    except Exception as error:  # noqa: BLE001  whatever it is, the next question is asked
        return {"not asked": _in_words(error), **expected}
    if question.assumed is None or question.agrees is None:
        return {"answer": answer, **expected}
    return {"answer": answer, **expected, "as assumed": question.agrees(answer, question.assumed)}


def _works(device: torch.device) -> bool:
    try:
        return bool((torch.ones(8).to(device).cpu() == 1).all())
    except Exception:  # noqa: BLE001  any error tells that it does not
        return False


def _summarise(report: dict[str, Any], file: Path) -> int:
    found: dict[str, list[str]] = {"as assumed": [], "otherwise": [], "measured": [], "not asked": []}
    for name, answer in report["answers"].items():
        found[_verdict(answer).partition(":")[0]].append(name)
    report["summary"] = {
        "as assumed": len(found["as assumed"]),
        "measured": len(found["measured"]),
        "otherwise": found["otherwise"],
        "not asked": found["not asked"],
    }
    answers.write(file, report)
    _say(
        f"{file}: {len(found['as assumed'])} answers as assumed, {len(found['otherwise'])} otherwise, "
        f"{len(found['measured'])} measured, {len(found['not asked'])} not asked. Please send it to the project."
    )
    return 1 if found["otherwise"] or report["kernels"]["self-check"] != "passed" else 0


def _verdict(answer: dict[str, Any]) -> str:
    if "not asked" in answer:
        return f"not asked: {answer['not asked']}"
    if "as assumed" not in answer:
        return "measured"
    return "as assumed" if answer["as assumed"] else "otherwise"


def _versions(session: State) -> dict[str, Any]:
    toolchain = session.toolchain
    return {
        "npu_ce_jit": __version__,
        "torch": toolchain.torch_version.value,
        "torch_npu": toolchain.torch_npu_version.value,
        "CANN": toolchain.cann_version.value,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _in_words(error: Exception) -> str:
    """The error's message, on one line."""
    if isinstance(error, BuildError):
        said = " | ".join((error.fact, *error.first_lines))
    elif isinstance(error, NpuCeJitError):
        said = error.fact
    else:
        said = f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:_MOST_SAID]


def _say(text: str) -> None:
    print(f"npu_ce_jit board: {text}", file=sys.stderr, flush=True)  # noqa: T201  its result is the file
