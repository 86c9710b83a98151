# SPDX-License-Identifier: Apache-2.0
"""The plan of backward for random shapes: buffers fit UB, each column is covered once, cores have even work."""

from __future__ import annotations

import ctypes
import itertools
import random

import pytest
from backward_npu import CeBackwardPlan, CeGradients, CeRowVector, compile_planner
from npu_kernels import UB_BYTES, CeProblem

PRESENT = ctypes.c_void_p(1)
SHAPES = 10_000
FLOAT32, FLOAT16, BFLOAT16, INT32, INT64 = range(5)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_planner(tmp_path_factory.mktemp("planner") / "planner.so")


def plan_of(planner: ctypes.CDLL, problem: CeProblem, pointers: CeGradients, cores: int) -> CeBackwardPlan:
    plan = CeBackwardPlan()
    planner.ce_backward_plan(ctypes.byref(problem), ctypes.byref(pointers), cores, UB_BYTES, ctypes.byref(plan))
    return plan


def size(random_: random.Random, most: int) -> int:
    """A size whose logarithm is uniform, so that small ones are as likely as large ones."""
    return min(most, int(2 ** random_.uniform(0, most.bit_length())))


def random_case(random_: random.Random) -> tuple[CeProblem, CeGradients]:
    problem = CeProblem(rows=size(random_, 300_000), classes=size(random_, 400_000), dtype=random_.randrange(3))
    problem.row_stride = problem.classes
    problem.target_dtype = random_.choice([INT32, INT64])
    problem.weight = random_.choice([None, PRESENT])
    problem.label_smoothing, problem.z_loss = random_.choice([0, 0.1]), random_.choice([0, 0.1])
    problem.softcap = random_.choice([0, 30])
    pointers = CeGradients(log_prob=random_.choice([None, None, PRESENT]), entropy_value=PRESENT)
    for name in ("loss", "z_loss", "lse", "entropy"):
        vector = CeRowVector(PRESENT, random_.randrange(3), random_.randrange(2))
        setattr(pointers, name, random_.choice([CeRowVector(), vector]))
    return problem, pointers


def buffers_of(plan: CeBackwardPlan, problem: CeProblem) -> int:
    """The UB bytes of the buffers that the kernels allocate."""
    sizes = plan.buffers
    vector = plan.row_vector * 4
    words = 2 if problem.target_dtype == INT64 else 1
    bits = -(-plan.row_vector // 8 // 32) * 32
    targets = (plan.row_buffers * words + 2) * vector + 3 * bits + 3 * 256
    queues = (
        (plan.input_tiles + 2) * sizes.tile
        + 2 * sizes.log_prob
        + plan.row_buffers * sizes.row_inputs
        + sizes.row_elements
    )
    buffers = sizes.weights + sizes.work + sizes.result + sizes.term + sizes.row_vectors + sizes.gap
    narrow = sizes.row_blocks + sizes.column_index + sizes.bits
    singles = 16 * 32  # eight numbers each, as read and as float32
    return queues + buffers + narrow + sizes.row_starts + singles + targets + (32 if problem.softcap else 0)


def work_of_cores(plan: CeBackwardPlan, problem: CeProblem) -> list[int]:
    """The number of elements of each core, in the kernels' division into units."""
    units = problem.rows * plan.pieces
    ends = [units * core // plan.blocks for core in range(plan.blocks + 1)]

    def elements_before(unit: int) -> int:
        row, piece = divmod(unit, plan.pieces)
        return row * problem.classes + min(piece * plan.piece_columns, problem.classes)

    return [elements_before(end) - elements_before(begin) for begin, end in itertools.pairwise(ends)]


@pytest.mark.parametrize("cores", [1, 7, 40, 48])
def test_random_shapes(planner: ctypes.CDLL, cores: int) -> None:
    random_ = random.Random(cores)
    for _ in range(SHAPES // 4):
        problem, pointers = random_case(random_)
        plan = plan_of(planner, problem, pointers, cores)
        said = f"rows {problem.rows}, classes {problem.classes}, dtype {problem.dtype}"

        assert buffers_of(plan, problem) <= UB_BYTES, said
        assert 0 < plan.blocks <= cores, said
        assert (plan.pieces - 1) * plan.piece_columns < problem.classes <= plan.pieces * plan.piece_columns, said
        assert plan.group_rows <= plan.row_vector and plan.row_vector % 64 == 0, said
        assert plan.tile_columns > 0 and plan.group_rows > 0, said
        element = 4 if problem.dtype == FLOAT32 else 2
        if plan.narrow:
            assert problem.classes <= plan.tile_columns < problem.classes + 32 // element, said
            by_blocks = plan.tile_columns <= 248
            assert plan.tile_columns // 8 * (8 if by_blocks else 1) <= 255, said  # limit of a repeat stride
            assert plan.group_rows // (8 if by_blocks else 1) <= 255, said  # limit of an instruction's repeats
            assert plan.group_rows * plan.tile_columns * element <= plan.buffers.tile, said
        else:
            assert plan.tile_columns * element <= plan.buffers.tile, said
            assert plan.tile_columns % 128 == 0, said
        for sums, rows in ((plan.log_prob_sums, problem.rows), (plan.weight_total, 1)):
            if sums.spans:
                assert (sums.spans - 1) * sums.span_columns < problem.classes <= sums.spans * sums.span_columns, said
                assert (sums.sums + rows) * 4 <= plan.workspace_bytes, said
                assert sums.spans == 1 or sums.partials + rows * sums.spans <= sums.sums, said

        work = work_of_cores(plan, problem)
        assert sum(work) == problem.rows * problem.classes and min(work) >= 0, said
        if problem.rows * problem.classes >= 1_000_000:
            assert max(work) <= 1.15 * sum(work) / cores, said


@pytest.mark.parametrize("cores", [40, 48])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_cores_are_evenly_busy_for_any_number_of_rows(planner: ctypes.CDLL, dtype: int, cores: int) -> None:
    pointers = CeGradients(loss=CeRowVector(PRESENT, FLOAT32, 0))
    for rows in [*range(1, 400), 767, 769, 1000, 2047, 2048, 2049, 4097]:
        least = -(-1_000_000 // rows)
        for classes in (least, least + 1237, max(least, 128_256)):
            problem = CeProblem(rows=rows, classes=classes, row_stride=classes, dtype=dtype, target_dtype=INT64)
            work = work_of_cores(plan_of(planner, problem, pointers, cores), problem)
            assert max(work) <= 1.15 * rows * classes / cores, (rows, classes)


@pytest.mark.parametrize("cores", [40, 48])
def test_with_little_work_a_core_has_whole_rows_or_a_piece_of_one(planner: ctypes.CDLL, cores: int) -> None:
    """With more work, a core has up to three groups of rows, each of which computes row numbers of its own."""
    pointers = CeGradients(loss=CeRowVector(PRESENT, FLOAT32, 0))
    for rows in range(1, 700):
        for classes in (641, 1000, 8080, 32_000, 131_072, 151_936):
            if rows * classes >= 1_000_000:
                continue
            problem = CeProblem(rows=rows, classes=classes, row_stride=classes, target_dtype=INT64)
            plan = plan_of(planner, problem, pointers, cores)
            units = rows * plan.pieces
            for core in range(plan.blocks):
                begin, end = units * core // plan.blocks, units * (core + 1) // plan.blocks
                assert end - begin == 1 or begin % plan.pieces == end % plan.pieces == 0, (rows, classes)


def test_sums_are_cut_the_same_for_any_number_of_cores(planner: ctypes.CDLL) -> None:
    random_ = random.Random(3)
    for _ in range(500):
        problem, pointers = random_case(random_)
        plans = [plan_of(planner, problem, pointers, cores) for cores in (1, 20, 48)]
        for name in ("log_prob_sums", "weight_total"):
            assert len({bytes(getattr(plan, name)) for plan in plans}) == 1


def test_what_is_likely_in_the_l2_is_read_through_it(planner: ctypes.CDLL) -> None:
    for dtype, rows in ((FLOAT32, 8192), (BFLOAT16, 16_384)):
        for more in (0, 1):
            problem = CeProblem(rows=rows + more, classes=1024, dtype=dtype, target_dtype=INT64)
            assert plan_of(planner, problem, CeGradients(), 48).bypass_l2 == more


@pytest.mark.parametrize(("rows", "classes"), [(0, 10), (0, 100_000)])
def test_nothing_is_launched_for_no_rows(planner: ctypes.CDLL, rows: int, classes: int) -> None:
    plan = plan_of(planner, CeProblem(rows=rows, classes=classes), CeGradients(), 48)
    assert plan.blocks == 0


def test_tiles_are_large_where_there_is_room(planner: ctypes.CDLL) -> None:
    pointers = CeGradients(loss=CeRowVector(PRESENT, FLOAT32, 0))
    for dtype, element in ((FLOAT32, 4), (BFLOAT16, 2)):
        problem = CeProblem(rows=4096, classes=128_256, dtype=dtype, target_dtype=INT64)
        assert plan_of(planner, problem, pointers, 48).tile_columns * element >= 16 * 1024
        problem.classes = 10
        plan = plan_of(planner, problem, pointers, 48)
        assert plan.narrow and plan.group_rows * problem.classes * element >= 8 * 1024
