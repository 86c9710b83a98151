# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels on [N, C, L] logits, with contiguous positions, against float64 and against [N, C]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from kernel_accuracy import assert_true
from kernel_problems import (
    ARGMAX,
    DTYPES,
    ENTROPY,
    IGNORE,
    LSE,
    MEAN,
    NONE,
    OF_ENTROPY,
    OF_LOSS,
    OF_LSE,
    OF_Z_LOSS,
    SUM,
    Z_LOSS,
    Problem,
    rounded,
    truth,
)

Run = Callable[[list[Problem]], list[dict[str, np.ndarray]]]
INF, NAN = np.inf, np.nan
ALL = Z_LOSS | LSE | ARGMAX | ENTROPY
# (images, classes, positions): empty ones, one of each, less than a vector, whole vectors, both sides of a block of
# classes (8) and of a tile of positions (512), many classes.
SIZES = [(0, 5, 3), (2, 4, 0), (1, 1, 1), (3, 7, 1), (2, 1, 9), (5, 3, 2), (1, 2, 16), (2, 8, 33), (3, 9, 49)]
SIZES += [(1, 19, 511), (2, 21, 512), (1, 17, 513), (2, 3, 1031), (1, 150, 67), (1, 2500, 5)]


def draw(rng: np.random.Generator, dtype: str, images: int, classes: int, positions: int) -> Problem:
    rows = images * positions
    logits, target = rounded(rng.normal(0, 3, (rows, classes)), dtype), rng.integers(0, classes, rows)
    return Problem(dtype, logits, target, positions=positions, outputs=ALL, gradients={OF_LOSS: np.ones(1)})


def with_all_gradients(rng: np.random.Generator, problem: Problem) -> Problem:
    bits = (OF_LOSS, OF_Z_LOSS, OF_LSE, OF_ENTROPY)
    if problem.reduction == NONE:
        gradients = {bit: rounded(rng.normal(size=len(problem.logits)), problem.acc) for bit in bits}
    else:  # a gradient of one element, for all rows
        gradients = {bit: np.full(1, 0.5 + 0.25 * i) for i, bit in enumerate(bits)}
    return replace(problem, gradients=gradients)


def variants(rng: np.random.Generator, problem: Problem) -> Iterator[Problem]:
    rows, classes = problem.logits.shape
    weight = rounded(rng.uniform(0.1, 2, classes), problem.acc)
    some_ignored = np.where(np.arange(rows) % 3 == 1, IGNORE, problem.target)
    per_row = {OF_LOSS: rounded(rng.normal(size=rows), problem.acc)}
    yield replace(problem, name="plain", outputs=0)
    yield replace(problem, name="in place", in_place=True)
    yield replace(problem, name="ignored", target=some_ignored, label_smoothing=0.1, weight=weight, class_padding=5)
    yield replace(problem, name="none", reduction=NONE, gradients=per_row, label_smoothing=1.0, image_padding=7)
    yield replace(problem, name="z", reduction=SUM, z_loss=1e-3, target_stride=2, int32_target=True, input_offset=1)
    capped = replace(problem, name="capped", softcap=5.0, logit_scale=0.7, weight=weight, target=some_ignored)
    yield capped
    yield with_all_gradients(rng, replace(capped, name="everything", z_loss=1e-2, label_smoothing=0.2, half_loss=True))
    yield with_all_gradients(rng, replace(problem, name="per row", reduction=NONE, logit_scale=-0.5, z_loss=1e-3))
    yield replace(problem, name="one image", image_padding=-classes * problem.positions)


def one_image(problem: Problem) -> Problem:
    """All images share the memory of the first one."""
    first = np.tile(problem.logits[: problem.positions], (len(problem.logits) // max(problem.positions, 1), 1))
    return replace(problem, logits=first) if problem.name == "one image" else problem


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_option_at_every_awkward_size(run: Run, dtype: str) -> None:
    rng = np.random.default_rng(1)
    drawn = [draw(rng, dtype, *size) for size in SIZES if size[2]]
    problems = [one_image(problem) for one in drawn for problem in variants(rng, one)]
    for problem, got in zip(problems, run(problems), strict=True):
        assert_true(problem, got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_and_broken_positions_stay_in_their_position(run: Run, dtype: str) -> None:
    rng = np.random.default_rng(2)
    problem = draw(rng, dtype, 1, 33, 9)
    x = problem.logits
    x[0, 1:] = -INF
    x[1, ::2] = -INF
    x[2, 3] = NAN
    x[3, 32] = INF
    x[4, :] = -INF
    x[5, :] = 1.5
    x[6, [7, 20]] = NAN
    x[7, :-1] = -INF
    x[8, :9] = -INF
    problem.target[:] = [0, 1, 2, 4, 0, 5, 6, 32, 8]
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_that_is_not_finite_stays_in_its_position(run: Run, dtype: str) -> None:
    rng = np.random.default_rng(6)
    of_loss = np.array([1.0, INF, -2.0, -INF, NAN] + [0.5] * 30)
    problem = replace(draw(rng, dtype, 1, 10, 35), reduction=NONE, gradients={OF_LOSS: of_loss})
    assert_true(problem, run([problem])[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_offset_and_many_classes_cost_no_digits(run: Run, dtype: str) -> None:
    """Sums over classes, of exp and of smoothed logits, are as exact as those over rows, which are in double."""
    rng = np.random.default_rng(5)
    problem = draw(rng, dtype, 1, 20_000, 3)
    far = replace(problem, logits=rounded(problem.logits / 8 + 200, dtype), label_smoothing=0.5, reduction=MEAN)
    got, expected = run([far])[0], truth(far)
    unit = 2.0**-24 if problem.acc == "float32" else 2.0**-44
    assert abs(got["loss"] - expected["loss"]) <= 8 * unit * expected["loss"]
    assert np.abs(got["row_stats"][1] - expected["row_stats"][1]).max() <= 8 * unit * expected["row_stats"][1].max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_terms_of_a_long_sum_cost_no_digits(run: Run, dtype: str) -> None:
    """Each addition rounds in the same direction, so errors do not cancel."""
    problem = draw(np.random.default_rng(6), dtype, 1, 200_003, 3)
    logits = np.full_like(problem.logits, -2.3)
    logits[:, 7] = 0.0
    problem = replace(problem, logits=rounded(logits, dtype))
    got, expected = run([problem])[0]["row_stats"][1], truth(problem)["row_stats"][1]
    unit = 2.0**-24 if problem.acc == "float32" else 2.0**-44
    assert np.abs(got - expected).max() <= 8 * unit * expected.max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_digits_of_a_confident_position_are_kept(run: Run, dtype: str) -> None:
    rng = np.random.default_rng(7)
    problem = draw(rng, dtype, 2, 21, 40)
    rows = np.arange(80)
    problem.logits[rows, problem.target] = np.linspace(10, 20, 80)
    problem = replace(problem, logits=rounded(problem.logits, dtype), reduction=SUM)
    got, expected = run([problem])[0]["gradient"], truth(problem)["gradient"]
    relative = np.abs(got - expected)[rows, problem.target] / np.abs(expected)[rows, problem.target]
    assert relative.max() <= {"bfloat16": 0.005, "float16": 1.0}.get(dtype, 4e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_no_bit(run: Run, dtype: str) -> None:
    rng = np.random.default_rng(4)
    problems = []
    for size in [(3, 17, 1031), (70, 9, 33), (1, 2, 40009)]:
        problem = replace(draw(rng, dtype, *size), label_smoothing=0.1, z_loss=1e-3)
        full = with_all_gradients(rng, replace(problem, reduction=NONE))
        problems += [replace(p, threads=threads) for p in (problem, full) for threads in (1, 2, 3, 7)]
    answers = run(problems)
    for first in range(0, len(answers), 4):
        for other in range(first + 1, first + 4):
            for name, value in answers[first].items():
                label = f"{name} on {problems[other].threads} threads, {problems[first].logits.shape}"
                np.testing.assert_array_equal(value, answers[other][name], err_msg=label)
