# SPDX-License-Identifier: Apache-2.0
"""The plan of forward for any shape: it covers each column once, fits UB, and leaves no core idle for long."""

from __future__ import annotations

import itertools
import random

import pytest
from npu_kernels import CeForwardOutputs, CeForwardPlan, CeForwardTiling, CeProblem, plan_forward

LANES, BLOCK_PITCH, NARROW, INPUT_TILES, STATES, COPY_ROWS = 64, 248, 1024, 7, 8, 4095
UB_THIRD = 65536
PRESENT = 1  # a non-null pointer; its value is not used
OPTIONAL = ("z_loss", "log_prob", "lse", "argmax", "entropy")


def ceil_div(n: int, by: int) -> int:
    return -(-n // by)


def problem_of(rows: int, classes: int, dtype: int = 0, **options: object) -> CeProblem:
    return CeProblem(rows=rows, row_stride=classes, classes=classes, dtype=dtype, **{"reduction": 1, **options})


def any_problem(chance: random.Random) -> tuple[CeProblem, CeForwardOutputs]:
    rows = round(10 ** chance.uniform(0, 5.4)) - (chance.random() < 0.1)
    classes = round(10 ** chance.uniform(0, 5.6))
    problem = problem_of(
        rows,
        classes,
        chance.randrange(3),
        weight=chance.choice((None, PRESENT)),
        label_smoothing=chance.choice((0.0, 0.1)),
        z_loss=chance.choice((0.0, 0.1)),
        softcap=chance.choice((0.0, 30.0)),
        reduction=chance.randrange(3),
    )
    return problem, CeForwardOutputs(**{name: PRESENT for name in OPTIONAL if chance.random() < 0.3})


def busiest_over_mean(problem: CeProblem, plan: CeForwardPlan) -> float:
    """The largest number of elements of a core over the mean, in the kernels' division into units."""
    tiling, blocks = plan.forward, plan.forward_blocks
    units = ceil_div(problem.rows, plan.sum_rows) * tiling.spans
    last = problem.classes - (tiling.spans - 1) * tiling.span_columns

    def before(unit: int) -> int:
        row, span = divmod(unit * plan.sum_rows, tiling.spans)
        return min(row, problem.rows) * problem.classes + span * tiling.span_columns

    edges = [before(units * core // blocks) for core in range(blocks + 1)]
    assert last > 0 and edges[-1] == problem.rows * problem.classes
    return max(end - begin for begin, end in itertools.pairwise(edges)) * blocks / edges[-1]


def check_tiles(problem: CeProblem, tiling: CeForwardTiling) -> None:
    size = 4 if problem.dtype == 0 else 2
    columns = min(tiling.span_columns, problem.classes)
    assert (tiling.spans - 1) * tiling.span_columns < problem.classes <= tiling.spans * tiling.span_columns
    assert tiling.spans == 1 or tiling.span_columns % LANES == 0
    if tiling.tile_rows:
        assert tiling.spans == 1 and problem.classes <= NARROW
        assert tiling.step_rows % 8 == tiling.tile_rows % 8 == 0 < tiling.step_rows <= tiling.tile_rows
        assert tiling.group_units % LANES == 0  # so that sums are whole
        assert tiling.tile_rows <= COPY_ROWS
        assert tiling.pitch >= problem.classes and tiling.pitch * size % 32 == 0
        # Strides and repeats have fields of 8 bits.
        by_blocks = tiling.pitch <= BLOCK_PITCH
        assert by_blocks or (tiling.pitch % LANES == 0 and tiling.pitch // 8 <= 255)
        assert tiling.step_rows // (8 if by_blocks else 1) <= 255
    else:
        assert tiling.tile_columns % LANES == 0
        assert tiling.tile_columns - LANES < columns
        assert tiling.input_tiles <= INPUT_TILES
        if tiling.kept_tiles:
            assert tiling.spans == 1
            tiles = ceil_div(problem.classes, tiling.tile_columns)
            # All tiles of the row, or all buffers but two, which the rest of the row needs.
            assert tiling.kept_tiles in (tiles, min(tiles, tiling.input_tiles - 2)) and tiling.kept_tiles > 0
            assert tiling.kept_tiles <= tiling.input_tiles
        if tiling.apart:
            assert tiling.input_tiles * tiling.tile_columns * size <= (2 if size == 4 else 1) * UB_THIRD
            assert size == 4 or tiling.tile_columns * 4 <= UB_THIRD


def check_workspace(problem: CeProblem, plan: CeForwardPlan) -> None:
    units = problem.rows * plan.forward.spans if plan.forward.spans > 1 else 0
    reduces = problem.reduction != 0
    terms = 1 + reduces + (problem.weight is not None) + (reduces and problem.z_loss != 0)
    ends = [
        plan.states_offset + STATES * units,
        plan.sums_offset + (terms * ceil_div(problem.rows, plan.sum_rows) if plan.reduce_blocks else 0),
        plan.partials_offset + (terms * plan.reduce_blocks if plan.reduce_blocks > 1 else 0),
    ]
    begins = [plan.sums_offset, plan.partials_offset, plan.workspace_bytes // 4]
    assert all(end <= begin for end, begin in zip(ends, begins, strict=True))


def test_properties_of_any_plan() -> None:
    chance = random.Random(20)
    for _ in range(10_000):
        problem, outputs = any_problem(chance)
        plan = plan_forward(problem, outputs)
        check_workspace(problem, plan)
        if problem.rows == 0:
            assert plan.forward_blocks == plan.merge_blocks == plan.log_prob_blocks == 0
            continue
        check_tiles(problem, plan.forward)
        assert plan.sum_rows in ((2, 8, 64) if plan.forward.tile_rows else (1,))
        assert 1 <= plan.forward_blocks <= 48
        assert (plan.merge_blocks > 0) == (plan.forward.spans > 1)
        assert (plan.log_prob_blocks > 0) == (bool(outputs.log_prob) and plan.forward.spans > 1)
        one_launch = bool(outputs.log_prob) and plan.forward.spans == 1 and not plan.forward.tile_rows
        assert (plan.forward.kept_tiles > 0) == one_launch
        assert not plan.reduces or (plan.merge_blocks or plan.forward_blocks) == 1
        wanted = problem.reduction != 0 and not plan.reduces
        sums = ceil_div(problem.rows, plan.sum_rows)
        assert plan.reduce_blocks == (ceil_div(sums, plan.reduce_sums) if wanted else 0)
        if problem.rows * problem.classes >= 10**6:
            assert busiest_over_mean(problem, plan) <= 1.15, (problem.rows, problem.classes)


@pytest.mark.parametrize(("rows", "bypass_l2"), [(4096, 0), (4097, 1)])
def test_the_l2_is_left_to_large_log_prob(rows: int, bypass_l2: int) -> None:
    problem = problem_of(rows, 2048)
    assert plan_forward(problem, CeForwardOutputs(log_prob=PRESENT)).bypass_l2 == bypass_l2
    assert plan_forward(problem, CeForwardOutputs()).bypass_l2 == 0  # so that backward finds the logits in the L2


@pytest.mark.parametrize("cores", [40, 48])
def test_balance_for_few_rows(cores: int) -> None:
    """All numbers of rows for which whole rows alone would leave cores idle."""
    for rows in [*range(1, 500), 960, 961, 1999]:
        for classes in {max(1, ceil_div(10**6, rows)), 32000, 128256, 152064}:
            if rows * classes < 10**6:
                continue
            problem = problem_of(rows, classes)
            plan = plan_forward(problem, CeForwardOutputs(), cores)
            assert plan.forward_blocks == cores
            assert busiest_over_mean(problem, plan) <= 1.15, (rows, classes)


def test_only_numbers_of_blocks_depend_on_the_cores() -> None:
    chance = random.Random(21)
    for _ in range(500):
        problem, outputs = any_problem(chance)
        tilings = set()
        for cores in (1, 7, 20, 40, 48):
            plan = plan_forward(problem, outputs, cores)
            assert max(plan.forward_blocks, plan.merge_blocks, plan.log_prob_blocks) <= cores
            reduction = plan.reduce_blocks, plan.sum_rows, plan.reduces
            tilings.add((bytes(plan.forward), bytes(plan.merge), bytes(plan.log_prob), *reduction))
        assert len(tilings) == 1


def test_rows_of_a_sum() -> None:
    """As many rows in a sum as leave no core idle: 64 from a few thousand rows on."""
    assert {plan_forward(problem_of(rows, 10), CeForwardOutputs()).sum_rows for rows in range(24_000, 25_000)} == {64}
    assert {plan_forward(problem_of(rows, 1000), CeForwardOutputs()).sum_rows for rows in range(2600, 3000)} <= {8, 64}
    plan = plan_forward(problem_of(16384 * 64 + 1, 10), CeForwardOutputs())
    assert (plan.sum_rows, plan.reduce_blocks) == (64, 2)


@pytest.mark.parametrize("dtype", [0, 1, 2])
@pytest.mark.parametrize("entropy", [None, PRESENT])
def test_a_row_of_up_to_1024_classes_is_one_cores_however_many_there_are(dtype: int, entropy: int | None) -> None:
    """So its bits do not depend on the other rows. Longer rows have spans that depend on the number of rows."""
    outputs = CeForwardOutputs(entropy=entropy)
    for rows, classes in itertools.product((1, 2, 7, 48, 1000, 40_000), (1, 63, 640, 1000, NARROW)):
        problem = problem_of(rows, classes, dtype, reduction=0, softcap=30.0)
        assert plan_forward(problem, outputs).forward.tile_rows, (rows, classes)
    spans = {plan_forward(problem_of(rows, 60_000, dtype, reduction=0), outputs).forward.spans for rows in (1, 4000)}
    assert len(spans) == 2, spans


def launches(plan: CeForwardPlan) -> list[int]:
    """The number of blocks of each launch."""
    blocks = [plan.forward_blocks, plan.merge_blocks, plan.log_prob_blocks, plan.reduce_blocks]
    return [number for number in blocks if number > 0]


@pytest.mark.parametrize("dtype", [0, 1])
@pytest.mark.parametrize("log_prob", [None, PRESENT])
@pytest.mark.parametrize(
    ("rows", "classes", "blocks"),
    [(1, 1, 1), (1, 20000, 1), (8, 1000, 1), (48, 1000, 12), (16, 8080, 16), (100, 5000, 34)],
)
def test_small_problems_take_few_cores(rows: int, classes: int, blocks: int, log_prob: int | None, dtype: int) -> None:
    """With one core, everything is one launch; with several, a second launch combines their results."""
    plan = plan_forward(problem_of(rows, classes, dtype), CeForwardOutputs(log_prob=log_prob))
    assert launches(plan) == ([1] if blocks == 1 else [blocks, 1])


@pytest.mark.parametrize("dtype", [0, 1])
@pytest.mark.parametrize(
    ("rows", "classes", "blocks"),
    [(1, 32000, 1), (4, 32000, 4), (16, 32000, 16), (48, 32000, 48), (22, 33_000, 22)],
)
def test_log_prob_of_rows_that_stay_in_ub_takes_no_launch(rows: int, classes: int, blocks: int, dtype: int) -> None:
    plan = plan_forward(problem_of(rows, classes, dtype), CeForwardOutputs(log_prob=PRESENT))
    assert launches(plan) == ([1] if blocks == 1 else [blocks, 1])


def test_much_work_is_for_all_cores() -> None:
    outputs = CeForwardOutputs(log_prob=PRESENT)
    assert launches(plan_forward(problem_of(49, 32000), outputs)) == [48, 1, 48]
    assert launches(plan_forward(problem_of(8, 152_064), outputs)) == [48, 1, 48]


def test_no_denominators_no_reduction() -> None:
    for rows, classes in ((5, 10), (5, 10_000)):
        problem, outputs = problem_of(rows, classes, reduction=0), CeForwardOutputs()
        plan = plan_forward(problem, outputs)
        assert plan.reduce_blocks == plan.reduces == 0
        outputs.denominators = PRESENT
        plan = plan_forward(problem, outputs)
        assert plan.reduce_blocks + plan.reduces == 1


def test_a_million_rows_are_summed_in_two_reads() -> None:
    """Here the plan alone; tests/npu_kernels/test_forward.py runs a reduction of two blocks, with fewer rows."""
    rows = 16384 * 64
    assert plan_forward(problem_of(rows, 2), CeForwardOutputs()).reduce_blocks == 1
    plan = plan_forward(problem_of(rows + 1, 2), CeForwardOutputs())
    assert (plan.sum_rows, plan.reduce_blocks) == (64, 2)
