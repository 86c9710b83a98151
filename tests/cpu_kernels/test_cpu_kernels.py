# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels without torch, on every instruction set that this machine can compile for, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_accuracy import SMALLEST, assert_close, assert_true
from kernel_builds import ISAS, Isa, compile_driver, why_it_cannot_compile, why_it_cannot_run
from kernel_problems import (
    ARGMAX,
    DTYPES,
    IGNORE,
    MEAN,
    NONE,
    OF_ENTROPY,
    OF_LOG_PROB,
    OF_LOSS,
    OF_LSE,
    OF_Z_LOSS,
    SUM,
    Problem,
    rounded,
    truth,
)

Run = Callable[[list[Problem]], list[dict[str, np.ndarray]]]
INF, NAN = np.inf, np.nan
# One class, rows shorter than a vector, more rows than are processed together, primes, both sides of 64 (narrow rows),
# of a block (2048), of a chunk.
SIZES = [(0, 5), (1, 1), (7, 1), (3, 2), (19, 10), (5, 63), (5, 64), (5, 65), (9, 31), (2, 127), (3, 2047), (3, 2048)]
SIZES += [(203, 10), (131, 3), (70, 33), (2, 2049), (1, 16384), (2, 16385), (3, 40009)]


@pytest.mark.parametrize("isa", [isa for isa in ISAS if why_it_cannot_run(isa)], ids=str)
def test_what_cannot_run_here_still_compiles(isa: Isa, tmp_path: Path) -> None:
    if reason := why_it_cannot_compile(isa):
        pytest.skip(reason)
    compile_driver(isa, tmp_path)


def draw(rng: np.random.Generator, dtype: str, rows: int, classes: int, spread: float = 3.0) -> Problem:
    target = rng.integers(0, classes, rows)
    return Problem(
        dtype, rounded(rng.normal(0, spread, (rows, classes)), dtype), target, gradients={OF_LOSS: np.ones(1)}
    )


def with_all_gradients(rng: np.random.Generator, problem: Problem) -> Problem:
    rows, classes = problem.logits.shape
    gradients = {bit: rounded(rng.normal(size=rows), problem.acc) for bit in (OF_LOSS, OF_Z_LOSS, OF_LSE, OF_ENTROPY)}
    if problem.reduction != NONE:  # a gradient of one element, for all rows
        gradients = {bit: np.full(1, 0.5 + 0.25 * i) for i, bit in enumerate(gradients)}
    gradients[OF_LOG_PROB] = rounded(rng.normal(size=(rows, classes)), problem.dtype)
    return replace(problem, gradients=gradients)


def variants(rng: np.random.Generator, problem: Problem) -> Iterator[Problem]:
    rows, classes = problem.logits.shape
    weight = rounded(rng.uniform(0.1, 2, classes), problem.acc)
    some_ignored = np.where(np.arange(rows) % 3 == 1, IGNORE, problem.target)
    per_row = {OF_LOSS: rounded(rng.normal(size=rows), problem.acc)}
    yield replace(problem, name="plain", outputs=0)
    yield replace(problem, name="in place", in_place=True, outputs=ARGMAX)
    yield replace(problem, name="ignored", target=some_ignored, label_smoothing=0.1, weight=weight)
    yield replace(problem, name="none", reduction=NONE, gradients=per_row, label_smoothing=1.0, row_padding=3)
    yield replace(problem, name="z", reduction=SUM, z_loss=1e-3, target_stride=2, int32_target=True)
    capped = replace(problem, name="capped", softcap=5.0, logit_scale=0.7, weight=weight, target=some_ignored)
    yield capped
    yield with_all_gradients(rng, replace(capped, name="everything", z_loss=1e-2, label_smoothing=0.2, in_place=True))
    yield with_all_gradients(rng, replace(problem, name="per row", reduction=NONE, logit_scale=-0.5, row_padding=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_option_at_every_awkward_size(run: Run, dtype: str) -> None:
    rng = np.random.default_rng(1)
    problems = [problem for size in SIZES for problem in variants(rng, draw(rng, dtype, *size))]
    for problem, got in zip(problems, run(problems), strict=True):
        assert_true(problem, got)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [33, 5000])
def test_masked_and_broken_rows_stay_in_their_row(run: Run, dtype: str, classes: int) -> None:
    rng = np.random.default_rng(2)
    problem = draw(rng, dtype, 9, classes)
    x = problem.logits
    x[0, 1:] = -INF
    x[1, ::2] = -INF
    x[2, 3] = NAN
    x[3, classes - 1] = INF
    x[4, :] = -INF
    x[5, :] = 1.5
    x[6, [7, 20]] = NAN
    x[7, :] = -INF
    x[7, -1] = -3
    problem.target[:] = [0, 1, 2, 4, 0, 5, 6, classes - 1, 8]
    ignored = np.where(np.isin(np.arange(9), [2, 3, 4, 6]), IGNORE, problem.target)
    per_row = replace(problem, reduction=NONE, gradients={OF_LOSS: np.linspace(1, 2, 9)})
    problems = [
        replace(per_row, name="per row"),
        replace(per_row, name="ignored", target=ignored, z_loss=1e-3),
        replace(problem, name="mean", target=ignored),
        replace(problem, name="softcap", target=ignored, softcap=3.0),
        replace(problem, name="all ignored", target=np.full(9, IGNORE)),
        with_all_gradients(rng, replace(per_row, name="all gradients", target=ignored)),
    ]
    for problem, got in zip(problems, run(problems), strict=True):
        assert_true(problem, got)
    assert np.isnan(run(problems[4:5])[0]["loss"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [10, 5000])
def test_a_gradient_that_is_not_finite_stays_in_its_row(run: Run, dtype: str, classes: int) -> None:
    rng = np.random.default_rng(6)
    of_loss = np.array([1.0, INF, -2.0, -INF, NAN] + [0.5] * 30)
    problem = replace(draw(rng, dtype, 35, classes), reduction=NONE, gradients={OF_LOSS: of_loss})
    for one in (problem, replace(problem, in_place=True, name="in place")):
        assert_true(one, run([one])[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_gradients_are_within_half_a_percent(run: Run, dtype: str) -> None:
    """For each element, also the true class of confident rows and the smallest p, and with a GradScaler's 2^16."""
    rng = np.random.default_rng(3)
    problems = []
    for classes in (10, 300, 32000):
        for scale in (1.0, 2.0**16):
            problem = draw(rng, dtype, 24, classes, spread=2.0)
            # The true class leads by more and more: 1 - p falls below 1e-4, and the other classes' p becomes subnormal.
            lead = np.linspace(0, 30, 24) if dtype == "float16" else np.linspace(0, 110, 24)
            problem.logits[np.arange(24), problem.target] = rounded(lead, dtype)
            reduction = SUM if dtype == "bfloat16" else MEAN
            problems.append(replace(problem, reduction=reduction, gradients={OF_LOSS: np.array([scale])}))
    for problem, got in zip(problems, run(problems), strict=True):
        expected = truth(problem)["gradient"]
        largest = {"bfloat16": 3.4e38, "float16": 65504.0}[dtype]
        allowed = np.where(np.abs(expected) > largest, INF, 0.005 * np.abs(expected) + SMALLEST[dtype])
        # The kernels sum exp in double, so 1 - p has a small absolute error, which is negligible at 1e-4.
        allowed[np.arange(24), problem.target] += 1e-15 * problem.gradients[OF_LOSS]
        assert_close(replace(problem, name="confident"), "gradient", got["gradient"], expected, allowed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_no_bit(run: Run, dtype: str) -> None:
    rng = np.random.default_rng(4)
    problems = []
    for size in [(4099, 17), (301, 211), (3, 40009), (1, 70001)]:
        problem = replace(draw(rng, dtype, *size), label_smoothing=0.1, z_loss=1e-3)
        full = with_all_gradients(rng, replace(problem, reduction=NONE))
        problems += [replace(p, threads=threads) for p in (problem, full) for threads in (1, 2, 3, 7)]
    answers = run(problems)
    for first in range(0, len(answers), 4):
        for other in range(first + 1, first + 4):
            for name, value in answers[first].items():
                label = f"{name} on {problems[other].threads} threads, {problems[first].logits.shape}"
                np.testing.assert_array_equal(value, answers[other][name], err_msg=label)


def test_one_huge_row_keeps_its_smoothed_sum(run: Run) -> None:
    rng = np.random.default_rng(5)
    problem = draw(rng, "float32", 1, 152064)
    problem = replace(problem, logits=rounded(problem.logits + 200, "float32"), label_smoothing=0.5)
    got, expected = run([problem])[0]["loss"], truth(problem)["loss"]
    assert abs(got - expected) <= 1e-6 * expected
