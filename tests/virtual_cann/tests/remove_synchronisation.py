# SPDX-License-Identifier: Apache-2.0
"""Removes each barrier, flag and queue call of a sample kernel in turn: does the virtual NPU notice?

    tests/virtual_cann/run python tests/virtual_cann/tests/remove_synchronisation.py [add | log_softmax ...]

prints, for each removal, the rules that the kernel then breaks and where, or that it survived; and beside them those
that it still breaks if the compiler is assumed to insert synchronisation (--cce-auto-sync). The program
remove_ce_synchronisation.py does the same to the kernels of cross entropy, and also removes their tails.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a program outside of the package

from virtual_cann import kernels

KERNELS = Path(__file__).resolve().parent / "kernels"

# Line -> why the kernel is right without it. Instead of adding an entry, remove the line from the kernel if possible.
HARMLESS: dict[str, dict[int, str]] = {"add": {}, "log_softmax": {}}

# Every call that can be removed. All mutants are one library, in which a number selects the missing call: compiling
# each separately would take hours. The replacement of a removed call must compile too: for AllocTensor it is an empty
# tensor; for DeQue it is the tensor that was enqueued last.
CALL = re.compile(
    r"(?P<fetch>[\w.]+\.(?:template )?(?:Alloc|(?P<wait>DeQue))(?:Tensor)?<(?P<type>\w+)>\(\))"
    r"|\b(?P<statement>(?:VectorBarrier|PipeBarrier<\w+>|Order<[\w:]+>)\(\)"
    r"|(?:Set|Wait)Flag<[\w:]+>\([^;]*\)"
    r"|(?:\w+\.)?FillTails?\([^;{]*\)"
    r"|[\w.]+\.(?:FreeTensor|EnQue)\((?P<tensor>[^;]*)\));"
)
PRELUDE = """
#include "kernel_operator.h"
extern "C" {
inline int missing_call = -1;
inline unsigned char calls_reached[100000] = {};
}
template <class T>
inline AscendC::LocalTensor<T> last_enqueued;
template <class T>
__aicore__ inline void Remember(const AscendC::LocalTensor<T>& tensor) {
  last_enqueued<T> = tensor;
}
__aicore__ inline bool Kept(int call) {
  calls_reached[call] = 1;
  return call != missing_call;
}
"""

Violations = list[dict[str, Any]]


class Ran(NamedTuple):
    violations: Violations
    outputs: list[Tensor]


Case = Callable[[ctypes.CDLL], Ran]


@dataclass(frozen=True)
class Removal:
    file: str
    line: int
    text: str


class Judged(NamedTuple):
    """The result of one mutant, in the first case that noticed it."""

    reached: bool  # whether any case executes the call
    violations: Violations
    wrong: bool  # the results differ from those with the call

    @property
    def survived(self) -> bool:
        return not self.violations and not self.wrong


@dataclass(frozen=True)
class Verdict:
    removal: Removal
    strict: Violations
    auto_sync: Violations  # if the compiler is assumed to insert synchronisation


def with_switches(source: str, file: str, numbers: Iterable[int]) -> tuple[str, list[Removal]]:
    """The source with each call made conditional, with the same lines, and the calls."""
    found: list[Removal] = []
    numbers = iter(numbers)

    def switch(match: re.Match[str]) -> str:
        found.append(Removal(file, source.count("\n", 0, match.start()) + 1, match[0]))
        kept, call = f"Kept({next(numbers)})", match["fetch"] or match["statement"]
        if match["fetch"]:
            instead = "last_enqueued<{}>" if match["wait"] else "AscendC::LocalTensor<{}>()"
            return f"({kept} ? {call} : {instead.format(match['type'])})"
        remember = f"Remember({match['tensor']}), " if ".EnQue(" in call else ""
        return f"{remember}{kept} ? (void)({call}) : (void)0;"

    return CALL.sub(switch, source), found


def add_switches(root: Path, sources: Iterable[Path], folder: Path) -> list[Removal]:
    """Copies the sources, with switches, to `folder`, under their paths relative to `root`."""
    numbers, found = count(), []
    (folder / "prelude.h").write_text(PRELUDE)
    for source in sources:
        name = source.relative_to(root).as_posix()
        text, of_file = with_switches(source.read_text(), name, numbers)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        found += of_file
    return found


def compile_switched(folder: Path, units: list[str]) -> Path:
    library = folder / "switched.so"
    sources = [folder / unit for unit in units]
    kernels.compile_kernels(sources[0], library, "-include", str(folder / "prelude.h"), *map(str, sources[1:]))
    return library


def judge_calls(library: Path, cases: Iterable[Case], calls: Iterable[int]) -> list[Judged]:
    """Runs each case once to see which calls it reaches; then, without each call, the cases that reach it."""
    kernels.acl()
    loaded = ctypes.CDLL(str(library))
    missing = ctypes.c_int.in_dll(loaded, "missing_call")
    reached = (ctypes.c_ubyte * 100000).in_dll(loaded, "calls_reached")
    whole = []
    for case in cases:
        ctypes.memset(reached, 0, ctypes.sizeof(reached))
        ran = case(loaded)
        assert ran.violations == [], ran.violations
        whole.append((case, bytes(reached), ran.outputs))

    def judged(call: int) -> Judged:
        missing.value = call
        verdict = Judged(reached=False, violations=[], wrong=False)
        for case, reaches, right in whole:
            if reaches[call]:
                ran = case(loaded)
                wrong = not ran.violations and not all(map(same_bits, ran.outputs, right))
                verdict = Judged(reached=True, violations=ran.violations, wrong=wrong)
                if not verdict.survived:
                    break
        return verdict

    return [judged(call) for call in calls]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def in_processes(commands: list[list[str]], variables: list[dict[str, str]]) -> list[list[Judged]]:
    """What each command prints. Separate processes, because each reads the auto-sync mode once."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
        children = [
            subprocess.Popen([sys.executable, *command], env=os.environ | more, stdout=subprocess.PIPE, stderr=errors)
            for command, more, errors in zip(commands, variables, files, strict=True)
        ]
        outputs = [child.communicate()[0] for child in children]
        for child, errors in zip(children, files, strict=True):
            if child.returncode:
                errors.seek(0)
                raise RuntimeError(errors.read()[-5000:].decode())
    return [[Judged(*judged) for judged in json.loads(output)] for output in outputs]


# Several tiles for each core, several rows, and a tail. fp32 and bf16 take different code paths.
def add_case(dtype: torch.dtype) -> Case:
    n = 3 * 16384 + 77
    x, y = torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype)
    return lambda library: run(library[f"launch_add_{name_of(dtype)}"], x, y, torch.empty(n, dtype=dtype), sizes=(n,))


def log_softmax_case(dtype: torch.dtype) -> Case:
    rows, cols = 5, 2 * 8192 + 77
    x = torch.linspace(-4, 4, rows * cols).to(dtype).view(rows, cols)
    launcher = f"launch_log_softmax_{name_of(dtype)}"
    return lambda library: run(library[launcher], x, torch.empty_like(x), sizes=(rows, cols))


CASES = {"add": add_case, "log_softmax": log_softmax_case}
DTYPES = (torch.float32, torch.bfloat16)
BLOCKS = 2


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run(launcher: Callable[..., Any], *tensors: Tensor, sizes: tuple[int, ...]) -> Ran:
    with ExitStack() as stack:
        pointers = [stack.enter_context(kernels.on_device(tensor)) for tensor in tensors]
        outcome = kernels.launch(launcher, BLOCKS, *pointers, *(ctypes.c_uint64(size) for size in sizes))
    return Ran(outcome.report["violations"], list(tensors))


def judge(kernel: Path) -> list[Verdict]:
    with tempfile.TemporaryDirectory() as folder:
        found = add_switches(KERNELS, [kernel], Path(folder))
        library = compile_switched(Path(folder), [kernel.name])
        command = [__file__, "--run", kernel.stem, str(library), str(len(found))]
        strict, auto_sync = in_processes(
            [command, command], [{"VIRTUAL_CANN_AUTO_SYNC": "0"}, {"VIRTUAL_CANN_AUTO_SYNC": "1"}]
        )
    pairs = zip(found, strict, auto_sync, strict=True)
    return [Verdict(removal, a.violations, b.violations) for removal, a, b in pairs]


def summary(violations: Violations, otherwise: str) -> str:
    return ", ".join(dict.fromkeys(f"{v['rule']} at {v['line']}" for v in violations)) or otherwise


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        kernel, library, calls = sys.argv[2:]
        json.dump(judge_calls(Path(library), map(CASES[kernel], DTYPES), range(int(calls))), sys.stdout)
        return
    for name in sys.argv[1:] or CASES:
        verdicts = judge(KERNELS / f"{name}.asc")
        for verdict in verdicts:
            removal = verdict.removal
            sys.stdout.write(
                f"{removal.file}:{removal.line}: {removal.text}\n"
                f"    strict     {summary(verdict.strict, 'SURVIVED')}\n"
                f"    auto-sync  {summary(verdict.auto_sync, 'covered by the compiler')}\n"
            )
        survivors = sum(not verdict.strict for verdict in verdicts)
        sys.stdout.write(f"{len(verdicts)} removals, {survivors} survived\n")


if __name__ == "__main__":
    main()
