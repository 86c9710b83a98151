# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from npu_ce_jit import bootstrap, console
from npu_ce_jit._version import __version__
from npu_ce_jit.errors import NpuCeJitError
from npu_ce_jit.jit.cache.store import Store

_COMPUTING = {
    "board": "ask the NPU here what only a chip can answer, and write the answers to a file",
    "bench": "time the losses beside PyTorch's on the best device here",
    "demo": "compute, compare and trace on the CPU",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; an invalid command line exits with 2."""
    console.escape_what_stdout_cannot_show()
    try:
        try:
            return _run(arguments)
        finally:
            console.flush()
    except BrokenPipeError:  # as `| head -1` does
        console.discard_output()
        return console.READER_LEFT
    except OSError as error:
        console.discard_output()
        print(f"npu_ce_jit: cannot write to standard output: {error}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    try:
        if parsed.command in _COMPUTING:
            return _compute(parsed.command, rest)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        run: Callable[[argparse.Namespace], int] = parsed.run
        return run(parsed)
    except BrokenPipeError:
        raise
    except (NpuCeJitError, OSError) as error:
        print(f"npu_ce_jit {parsed.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="npu_ce_jit", description="Cross-entropy loss for PyTorch, compiled on import."
    )
    parser.add_argument("--version", action="version", version=f"npu_ce_jit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, run: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=help_, description=help_)
        command.set_defaults(run=run)
        return command

    info = add("info", _info, "say what this machine runs on, and what the cache holds")
    info.add_argument("--json", action="store_true", help="print it for a program")
    doctor = add("doctor", _doctor, "say what works on this machine and how to mend what does not")
    doctor.add_argument("--json", action="store_true", help="print the report for a program")
    build = add("build", _build, "build what is not built yet")
    build.add_argument("--into", type=Path, metavar="DIR", help="a cache to build into, for NPU_CE_JIT_PREBUILT_DIR")
    build.add_argument("--soc", metavar="NAME", help="the chip to build for, such as Ascend910B2, if it is not here")
    build.add_argument("-v", "--verbose", action="store_true", help="print what the compilers said")
    clean = add("clean", _clean, "remove from the cache what serves nobody")
    what = clean.add_mutually_exclusive_group()
    what.add_argument("--broken", action="store_true", help="damaged entries and dead builders' leftovers; the default")
    what.add_argument(
        "--rejected", action="store_true", help="also what failed its self-check; its flags are tried again"
    )
    what.add_argument("--older-than", type=_days, metavar="DAYS", help="also entries that were built earlier")
    what.add_argument("--all", action="store_true", help="everything")
    clean.add_argument("--dry-run", action="store_true", help="only say what would go")
    add("verify", _verify, "read every entry of the cache; exit with 1 where one is damaged")
    pack = add("pack", _pack, "write the cache into one file, for machines without a compiler")
    pack.add_argument("file", type=Path, help="the file, or a directory for a file named by what it needs")
    unpack = add("unpack", _unpack, "take what another machine has packed into the cache; its code will run here")
    unpack.add_argument("file", type=Path)
    for name, help_ in _COMPUTING.items():
        commands.add_parser(name, help=help_, add_help=False)  # parses its arguments itself
    return parser


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of days, 0 or more, got {text!r}")
    return days


def _compute(command: str, arguments: list[str]) -> int:
    """Runs a command that computes; its module is imported only here, since other commands need none of it."""
    if command == "board":
        from npu_ce_jit.board.run import run_board

        return run_board(arguments)
    if command == "bench":
        from npu_ce_jit.bench.command import run_bench

        return run_bench(arguments)
    from npu_ce_jit.cli.demo import run_demo

    return run_demo(arguments)


def _store() -> Store:
    return Store.of(bootstrap.run().settings)


def _info(parsed: argparse.Namespace) -> int:
    from npu_ce_jit.interactive.info import info_of

    session = bootstrap.load_all(may_build=False)
    info = info_of(session)
    if parsed.json:
        print(info.as_json())
    else:
        console.show(info.lines(), may_colour=session.settings.may_colour)
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from npu_ce_jit.cli import doctor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the report says it
        session, tried = doctor.try_npu(bootstrap.load_all(may_build=True))
    checks = [*doctor.examine(session), *tried]
    if parsed.json:
        print(json.dumps(doctor.as_json(session, checks), indent=2))
    else:
        console.show(doctor.lines(session, checks), may_colour=session.settings.may_colour)
    return 0 if doctor.is_healthy(checks) else 1


def _build(parsed: argparse.Namespace) -> int:
    from npu_ce_jit.cli import cache_commands

    return cache_commands.build(bootstrap.run(), parsed.into, parsed.soc, verbose=parsed.verbose)


def _clean(parsed: argparse.Namespace) -> int:
    from npu_ce_jit.cli import cache_commands

    return cache_commands.clean(
        _store(),
        everything=parsed.all,
        rejected=parsed.rejected,
        older_than_days=parsed.older_than,
        dry_run=parsed.dry_run,
    )


def _verify(_: argparse.Namespace) -> int:
    from npu_ce_jit.cli import cache_commands

    settings = bootstrap.run().settings
    return cache_commands.verify(Store.of(settings), may_colour=settings.may_colour)


def _pack(parsed: argparse.Namespace) -> int:
    from npu_ce_jit.cli import cache_commands

    return cache_commands.pack_into(bootstrap.run(), parsed.file)


def _unpack(parsed: argparse.Namespace) -> int:
    from npu_ce_jit.cli import cache_commands

    return cache_commands.unpack_from(_store(), parsed.file)
