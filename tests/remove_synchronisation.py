# SPDX-License-Identifier: Apache-2.0
"""Take each barrier, flag and queue call out of a sample kernel in turn: does the virtual NPU notice?

    tests/virtual_cann/run python tests/remove_synchronisation.py [tests/kernels/log_softmax.asc]

prints, for each removal, the rules that its kernel then breaks and where, or that it survived; and beside them what is
left to report when the compiler is taken to insert what --cce-auto-sync inserts.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from virtual_cann import kernels

KERNELS = Path(__file__).resolve().parent / "kernels"

# Line -> why the kernel is right without it. Better than an entry is a kernel without the line.
HARMLESS: dict[str, dict[int, str]] = {"add": {}, "log_softmax": {}}

# What stands in a removed call's place, so that the kernel still compiles: the tensor that is used without having been
# allocated is an empty one, and the tensor that is used without waiting for it is the one enqueued last.
MUTATIONS = {
    r"PipeBarrier<\w+>\(\);": "",
    r"(Set|Wait)Flag<[\w:]+>\([^;]*\);": "",
    r"\w+\.(EnQue|FreeTensor)\(\w+\);": "",
    r"= \w+\.template AllocTensor<T>\(\);": ";",
    r"= \w+\.template DeQue<T>\(\);": "= lastEnqueued<T>;",
}
REMEMBER = (r"\w+\.EnQue\((\w+)\);", r"lastEnqueued<T> = \1; \g<0>")
PRELUDE = '#include "kernel_operator.h"\ntemplate <class T>\nAscendC::LocalTensor<T> lastEnqueued;\n'


Violations = list[dict[str, Any]]


@dataclass(frozen=True)
class Removal:
    line: int
    text: str
    source: str  # the kernel's, without it


@dataclass(frozen=True)
class Verdict:
    removal: Removal
    strict: Violations
    auto_sync: Violations  # taking the compiler to insert what it inserts


def removals(source: str) -> Iterator[Removal]:
    lines = source.splitlines()
    for index, line in enumerate(lines):
        for pattern, instead in MUTATIONS.items():
            if re.search(pattern, line):
                mutant = [*lines[:index], re.sub(pattern, instead, line), *lines[index + 1 :]]
                yield Removal(index + 1, line.strip(), "\n".join(mutant))


def one_source(mutants: list[str], name: str) -> str:
    """All of them as one translation unit: the headers, which are most of it, are then compiled once."""
    parts = [PRELUDE]
    for index, mutant in enumerate(mutants):
        body = re.sub(r"#include .*|^\w+\(float16, .*", "", mutant, flags=re.MULTILINE)
        body = re.sub(*REMEMBER, body)
        body = re.sub(rf"\b((launch_)?{name}_##dtype)", rf"\1##_{index}", body)
        macros = "".join(f"#undef {macro}\n" for macro in re.findall(r"^#define (\w+)", body, re.MULTILINE))
        parts.append(f'namespace mutant_{index} {{\n#line 1 "{name}.asc"\n{body}\n{macros}}}\n')
    return "".join(parts)


def launch_add(launcher: Callable[..., Any], dtype: torch.dtype) -> kernels.Outcome:
    n = 3 * 16384 + 77
    return run(
        launcher, torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype), torch.empty(n, dtype=dtype), sizes=(n,)
    )


def launch_log_softmax(launcher: Callable[..., Any], dtype: torch.dtype) -> kernels.Outcome:
    rows, cols = 5, 2 * 8192 + 77
    x = torch.linspace(-4, 4, rows * cols).to(dtype).view(rows, cols)
    return run(launcher, x, torch.empty_like(x), sizes=(rows, cols))


# Several tiles for a core, several rows, and a tail. fp32 and bf16 take different ways through a kernel.
LAUNCHES = {"add": launch_add, "log_softmax": launch_log_softmax}
DTYPES = (torch.float32, torch.bfloat16)
BLOCKS = 2


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run(launcher: Callable[..., Any], *tensors: torch.Tensor, sizes: tuple[int, ...]) -> kernels.Outcome:
    with ExitStack() as stack:
        pointers = [stack.enter_context(kernels.on_device(tensor)) for tensor in tensors]
        return kernels.launch(launcher, BLOCKS, *pointers, *(ctypes.c_uint64(size) for size in sizes))


def run_all(kernel: str, library: Path, count: int) -> list[Violations]:
    """What each of the mutants in the library breaks."""
    kernels.acl()
    loaded = ctypes.CDLL(str(library))
    return [
        [
            violation
            for dtype in DTYPES
            for violation in LAUNCHES[kernel](loaded[f"launch_{kernel}_{name_of(dtype)}_{index}"], dtype).report[
                "violations"
            ]
        ]
        for index in range(count)
    ]


def judge(kernel: Path) -> list[Verdict]:
    found = list(removals(kernel.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, kernel.name)
        source.write_text(one_source([removal.source for removal in found], kernel.stem))
        library = source.with_suffix(".so")
        kernels.compile_kernels(source, library, "-O0")
        # A process reads the mode once, and the runtime writes to stderr why each of these launches failed.
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "--run", kernel.stem, library, str(len(found))],
                env={**os.environ, "VIRTUAL_CANN_AUTO_SYNC": auto_sync},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for auto_sync in "01"
        ]
        outputs = [child.communicate() for child in children]
    for child, (_, errors) in zip(children, outputs, strict=True):
        if child.returncode:
            raise RuntimeError(errors.decode())
    return [Verdict(*parts) for parts in zip(found, *(json.loads(output) for output, _ in outputs), strict=True)]


def summary(violations: Violations, otherwise: str) -> str:
    return ", ".join(dict.fromkeys(f"{v['rule']} at {v['line']}" for v in violations)) or otherwise


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        kernel, library, count = sys.argv[2:]
        json.dump(run_all(kernel, Path(library), int(count)), sys.stdout)
        return
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else KERNELS / "log_softmax.asc"
    verdicts = judge(path)
    for verdict in verdicts:
        sys.stdout.write(
            f"{path.name}:{verdict.removal.line}: {verdict.removal.text}\n"
            f"    strict     {summary(verdict.strict, 'SURVIVED')}\n"
            f"    auto-sync  {summary(verdict.auto_sync, 'covered by the compiler')}\n"
        )
    survivors = sum(not verdict.strict for verdict in verdicts)
    sys.stdout.write(f"{len(verdicts)} removals, {survivors} survived\n")


if __name__ == "__main__":
    main()
