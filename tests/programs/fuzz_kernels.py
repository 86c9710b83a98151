# SPDX-License-Identifier: Apache-2.0
"""Solves random problems with the CPU kernels under sanitizers.

    python tests/programs/fuzz_kernels.py CASES [--seed N] [--first N]

Each is solved on one thread and on several, whose answers must have the same bits, and compared with float64. A case
depends on its seed and number only: the command that a failure prints runs it again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import checkout_path  # noqa: F401  before what the tests share

# isort: split
import numpy as np
from kernel_accuracy import assert_true
from kernel_builds import AVX2, BASELINE, ISAS, compile_driver, compiler_of, why_it_cannot_run
from kernel_problems import (
    DTYPES,
    ENTROPY,
    LOG_PROB,
    NONE,
    OF_ENTROPY,
    OF_LOG_PROB,
    OF_LOSS,
    OF_LSE,
    OF_Z_LOSS,
    Problem,
    rounded,
)

BATCH = 25  # problems for each process
FASTEST = next(isa for isa in (AVX2, BASELINE) if not why_it_cannot_run(isa))


@dataclass(frozen=True)
class Sanitizer:
    name: str
    flags: tuple[str, ...]
    options: dict[str, str]  # environment variables of the sanitizer's runtime

    def __str__(self) -> str:
        return self.name

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.options}

    def why_it_cannot_run(self, folder: Path) -> str | None:
        """None if it can. A compiler may lack the runtimes, or these may refuse the address-space layout."""
        program = folder / "nothing"
        compile_it = [compiler_of(FASTEST), *self.flags, "-x", "c++", "-", "-o", str(program)]
        for command, text in [(compile_it, "int main() {}"), ([str(program)], "")]:
            done = subprocess.run(command, input=text, capture_output=True, text=True, env=self.environment)
            if done.returncode:
                return f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}"
        return None


_READABLE = ("-O1", "-g1", "-fno-omit-frame-pointer")
SANITIZERS = [
    Sanitizer(
        "address+undefined",
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS", *_READABLE),
        # Leak detection needs ptrace, which containers often forbid.
        {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    ),
    Sanitizer("thread", ("-fsanitize=thread", *_READABLE), {"TSAN_OPTIONS": "halt_on_error=1"}),
]


# -- problems
def shape(rng: np.random.Generator) -> tuple[int, int]:
    """Sizes on both sides of every limit of the kernels: 64 classes, a block, a chunk, and the 32768 logits from which
    on several threads run."""
    few, many = rng.integers(1, 3000), rng.integers(33_000, 50_000)
    match rng.integers(6):
        case 0:
            return int(rng.integers(0, 20)), int(rng.integers(1, 70))
        case 1:
            classes = int(rng.integers(1, 66))
            return int(many // classes), classes
        case 2:
            return int(rng.integers(1, 8)), int(few)
        case 3:
            return int(many // few + 1), int(few)
        case 4:
            return int(rng.integers(1, 6)), int(rng.choice([63, 64, 65, 2047, 2048, 2049, 16_383, 16_384, 16_385]))
        case _:
            rows = int(rng.integers(1, 4))
            return rows, int(many // rows)


def problem_of(seed: int, number: int) -> Problem:
    rng = np.random.default_rng([seed, number])

    def one_of(*choices: float) -> float:
        return choices[rng.integers(len(choices))]

    rows, classes = shape(rng)
    dtype = DTYPES[rng.integers(len(DTYPES))]
    logits = rng.normal(one_of(0, 0, 50), one_of(0.1, 3, 30), (rows, classes))
    masked = one_of(False, False, True)
    if masked:  # the first class stays unmasked, so that no row is empty
        logits[:, 1:][rng.random((rows, classes - 1)) < 0.5] = -np.inf
    in_place = one_of(False, True)
    row_padding = 0 if in_place else one_of(0, 1, 17, -classes)
    if row_padding == -classes:
        logits[:] = logits[:1]
    target_stride = one_of(1, 1, 2, 0)
    ignore_index = one_of(-100, 0, classes - 1)
    target = np.where(rng.random(rows) < one_of(0, 0.3, 1), ignore_index, rng.integers(0, classes, rows))
    problem = Problem(
        dtype,
        rounded(logits, dtype),
        target if target_stride else np.full(rows, target[0] if rows else 0),
        reduction=rng.integers(3),
        label_smoothing=0.0 if masked else one_of(0, 0, 0.1, 1),
        z_loss=one_of(0, 0, 1e-3),
        softcap=one_of(0, 0, 5, 30),
        logit_scale=one_of(1, 1, 0.5, -0.5),
        outputs=int(rng.integers(32)),
        ignore_index=ignore_index,
        half_loss=one_of(False, False, True),
        row_padding=row_padding,
        target_stride=target_stride,
        gradient_stride=one_of(1, 1, 3),
        log_prob_padding=one_of(0, 0, 5, -classes),
        input_offset=one_of(0, 0, 1, 3),
        int32_target=one_of(False, True),
        in_place=in_place,
    )
    if one_of(False, True):
        problem.weight = rounded(rng.uniform(0.1, 2, classes), problem.acc)
    asked = int(one_of(OF_LOSS, OF_LOSS, rng.integers(1, 32)))
    for bit, of_dtype in {
        OF_LOSS: problem.loss_dtype,
        OF_Z_LOSS: problem.loss_dtype,
        OF_LSE: problem.acc,
        OF_ENTROPY: problem.acc,
    }.items():
        if asked & bit:
            for_all = bit in (OF_LOSS, OF_Z_LOSS) and (problem.reduction != NONE or one_of(False, True))
            problem.gradients[bit] = rounded(rng.normal(size=1 if for_all else rows), of_dtype)
    if asked & OF_LOG_PROB:
        values = rounded(rng.normal(size=(rows, classes)), dtype)
        problem.gradients[OF_LOG_PROB] = values[:1].repeat(rows, 0) if problem.log_prob_padding < 0 else values
    if asked & OF_ENTROPY:
        problem.outputs |= ENTROPY
    return planar(rng, problem) if one_of(False, False, True) else problem


def planar(rng: np.random.Generator, problem: Problem) -> Problem:
    """The rows as contiguous positions, of one image or of several."""
    rows = len(problem.logits)
    images = rng.choice([count for count in (1, 2, 3, 7, rows) if count and rows % count == 0])
    paddings = (0, 0) if problem.in_place else rng.choice([0, 1, 13], 2)
    of_others = {bit: values for bit, values in problem.gradients.items() if bit != OF_LOG_PROB}
    return replace(
        problem,
        positions=max(1, rows // images),
        class_padding=int(paddings[0]),
        image_padding=int(paddings[1]),
        row_padding=0,
        outputs=problem.outputs & ~LOG_PROB,
        gradients=of_others,
    )


# -- answers
Answer = tuple[dict[str, np.ndarray], bytes]


def run(command: list[str], sanitizer: Sanitizer, problems: list[Problem]) -> Iterator[Answer]:
    """Yields answers and their bytes; at last checks the process. AssertionError if a sanitizer stops it."""
    sent = b"".join(problem.encoded() for problem in problems)
    done = subprocess.run(command, input=sent, capture_output=True, env=sanitizer.environment)
    how_it_ended = f"exit code {done.returncode}\n{done.stderr.decode()[-6000:]}"
    answer = BytesIO(done.stdout)
    for problem in problems:
        begin = answer.tell()
        try:
            found = problem.decoded(answer)
        except EOFError:
            raise AssertionError(how_it_ended) from None
        yield found, done.stdout[begin : answer.tell()]
    assert done.returncode == 0, how_it_ended
    assert answer.read() == b""


def fuzz(command: list[str], sanitizer: Sanitizer, seed: int, numbers: range) -> None:
    for begin in range(0, len(numbers), BATCH):
        batch = numbers[begin : begin + BATCH]
        alone = [problem_of(seed, number) for number in batch]
        threads = [2 + number % 7 for number in batch]
        pairs = [(problem, replace(problem, threads=many)) for problem, many in zip(alone, threads, strict=True)]
        answers = run(command, sanitizer, [problem for pair in pairs for problem in pair])
        for number, problem, many in zip(batch, alone, threads, strict=True):
            try:
                (found, serial), (_, parallel) = next(answers), next(answers)
                assert serial == parallel, f"{many} threads changed bits"
                if problem.softcap:  # several logits may be rounded to the same max, of which the first is the argmax
                    found.pop("argmax", None)
                assert_true(problem, found)
            except AssertionError as error:
                facts = replace(problem, logits=problem.logits.shape, target=None, weight=None, gradients={})
                again = f"python tests/programs/fuzz_kernels.py 1 --seed {seed} --first {number}"
                raise AssertionError(f"{again}\n{sanitizer}, {many} threads: {facts}\n{error}") from error
        assert next(answers, None) is None  # the process also exited with 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--isa", choices=[isa.name for isa in ISAS], default=FASTEST.name)
    arguments = parser.parse_args()
    isa = next(isa for isa in ISAS if isa.name == arguments.isa)
    numbers = range(arguments.first, arguments.first + arguments.cases)

    def fuzz_under(sanitizer: Sanitizer) -> None:
        with tempfile.TemporaryDirectory() as folder:
            fuzz(compile_driver(isa, Path(folder), sanitizer.flags), sanitizer, arguments.seed, numbers)

    with ThreadPoolExecutor(len(SANITIZERS)) as pool:
        for sanitizer, _ in zip(SANITIZERS, pool.map(fuzz_under, SANITIZERS), strict=True):
            sys.stdout.write(f"{sanitizer}: {arguments.cases} cases, none wrong\n")


if __name__ == "__main__":
    main()
