# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence

from npu_ce_jit import bootstrap
from npu_ce_jit._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; 2 for a command line that is not one."""
    parser = argparse.ArgumentParser(
        prog="npu_ce_jit", description="Cross-entropy loss for PyTorch, compiled on import."
    )
    parser.add_argument("--version", action="version", version=f"npu_ce_jit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    doctor = commands.add_parser("doctor", help="say what works on this machine and how to mend what does not")
    doctor.add_argument("--json", action="store_true", help="print the report for a program")
    commands.add_parser("bench", help="time the losses beside PyTorch's on the best device here", add_help=False)
    commands.add_parser("demo", help="compute, compare and trace on the best device here", add_help=False)
    parsed, rest = parser.parse_known_args(arguments)
    # What computes for a while is imported when it is asked for: doctor needs none of it.
    if parsed.command == "bench":
        from npu_ce_jit.bench import run_bench

        return run_bench(rest)
    if parsed.command == "demo":
        from npu_ce_jit.demo import run_demo

        return run_demo(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return _doctor(as_json=parsed.json)


def _doctor(*, as_json: bool) -> int:
    from npu_ce_jit import doctor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the report says it
        session, tried = doctor.try_npu(bootstrap.run())
    checks = [*doctor.examine(session), *tried]
    if as_json:
        print(json.dumps(doctor.as_json(session, checks), indent=2))
    else:
        for check in checks:
            print(
                f"{check.verdict:4}  {check.name}: {check.found}" + (f"  ({check.evidence})" if check.evidence else "")
            )
            if check.cure and check.verdict != "ok":
                print(f"      {check.cure}")
        print(f"runs on: {session.backend}")
    return 0 if doctor.is_healthy(checks) else 1
