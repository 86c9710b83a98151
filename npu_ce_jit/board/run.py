# SPDX-License-Identifier: Apache-2.0
"""Asks all questions and writes the file of answers, which is whole after each of them.

A question that fails leaves its reason in the file, and the next is asked. A device that a question has taken down
serves no other in this process: a process of its own goes on then, from the file.
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
from npu_ce_jit.board import answers
from npu_ce_jit.board.probes import Probes
from npu_ce_jit.board.questions import Board, Question, questions
from npu_ce_jit.bootstrap import Session
from npu_ce_jit.devices import require_npu
from npu_ce_jit.errors import BuildError, NpuCeJitError

_SECONDS = 90.0
_BEGUN = {"not asked": "the process ended while it was asked"}


def run_board(arguments: list[str]) -> int:
    """0 where the file is written and every answer is as assumed or has no assumption to differ from."""
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
    began = time.perf_counter()
    report: dict[str, Any] = json.loads(parsed.file.read_text("utf-8")) if parsed.resume else {"what": answers.WHAT}
    answers.write(parsed.file, report)  # before a minute is spent on what cannot be written
    device = require_npu()
    board = _prepared(device, report)
    if not _ask_all(board, report, parsed.file, parsed.seconds):
        left = max(1.0, parsed.seconds - (time.perf_counter() - began))
        _say("the device does not answer any more; a new process goes on")
        command = [sys.executable, "-m", "npu_ce_jit", "board", str(parsed.file), f"--seconds={left:.0f}", "--resume"]
        return subprocess.run(command, check=False).returncode  # noqa: S603  this package's own
    return _summarise(report, parsed.file)


def _prepared(device: torch.device, report: dict[str, Any]) -> Board:
    """Builds, checks, and puts what came of it at the head of the report."""
    _say("building the kernels, unless they are there")
    session, problem = bootstrap.load_all(may_build=True), None
    if session.npu.state != "none":
        session, problem = bootstrap.try_npu(device)
    problem = problem or session.npu.problem
    probes: Probes | NpuCeJitError
    try:
        probes = Probes(session, device)
    except NpuCeJitError as error:
        probes = error
    properties = torch.get_device_module(device).get_device_properties(device)
    cores = int(properties.vector_core_num)
    if "answers" not in report:
        artifact = session.npu.artifact
        report |= {
            "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d"),
            "chip": {"name": properties.name, "vector cores": cores, "memory, MiB": properties.total_memory >> 20},
            "versions": _versions(session),
            "kernels": {"self-check": "passed"} if problem is None else {"self-check": _told(problem)},
            "answers": {},
        }
        if artifact is not None:
            report["kernels"] |= {
                "flags": artifact.manifest.get("rung"),
                "tried": [answers.without_paths(line) for line in artifact.manifest.get("rungs", [])],
                "built in seconds": artifact.manifest.get("seconds"),
            }
        _say(f"self-check: {report['kernels']['self-check']}")
    return Board(device, cores, probes)


def _ask_all(board: Board, report: dict[str, Any], file: Path, seconds: float) -> bool:
    """Whether the device still works after it."""
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
        return {"not asked": _told(error), **expected}
    if question.assumed is None:
        return {"answer": answer}
    return {"answer": answer, **expected, "as assumed": question.agrees(answer, question.assumed)}


def _works(device: torch.device) -> bool:
    try:
        return bool((torch.ones(8).to(device).cpu() == 1).all())
    except Exception:  # noqa: BLE001  it has no other way to tell
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


def _versions(session: Session) -> dict[str, Any]:
    toolchain = session.toolchain
    return {
        "npu_ce_jit": __version__,
        "torch": toolchain.torch_version.value,
        "torch_npu": toolchain.torch_npu_version.value,
        "CANN": toolchain.cann_version.value,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _told(error: Exception) -> str:
    """What it says of the fault, in a few lines, without paths."""
    if isinstance(error, BuildError):
        said = " | ".join((error.fact, *error.first_lines))
    elif isinstance(error, NpuCeJitError):
        said = error.fact
    else:
        said = f"{type(error).__name__}: {error}"
    return answers.without_paths(" ".join(said.split()))[:1000]


def _say(text: str) -> None:
    print(f"npu_ce_jit board: {text}", file=sys.stderr, flush=True)  # noqa: T201  the file is what it gives
