# SPDX-License-Identifier: Apache-2.0
"""The forward kernels on the virtual CANN: results against float64, and no rule is broken."""

from __future__ import annotations

import random

import pytest
import torch
from fuzz_npu_forward import any_case
from npu_forward_check import (
    DTYPES,
    EVERYTHING,
    OPTIONS,
    arguments_of,
    assert_close,
    check,
    logits_of,
    targets_of,
    truths,
)
from npu_kernels import Arguments, forward

INF, NAN = float("inf"), float("nan")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])

# One class; around a block, a vector repeat, the limits of strides by blocks and of the narrow layout, a tile; several.
CLASSES = [1, 2, 7, 10, 16, 17, 63, 64, 65, 127, 240, 248, 249, 1000, 1024, 1025, 2049, 8080, 33333]


@every_dtype
@pytest.mark.parametrize("classes", CLASSES)
def test_awkward_numbers_of_classes(dtype: torch.dtype, classes: int) -> None:
    torch.manual_seed(classes)
    rows = 19 if classes < 2000 else 5
    check(logits_of(rows, classes, dtype), targets_of(rows, classes), Arguments())


@every_dtype
def test_every_tail_of_a_repeat(dtype: torch.dtype) -> None:
    for classes in [*range(1025, 1025 + 64, 3), *range(250, 258), *range(1, 18)]:
        check(logits_of(3, classes, dtype), targets_of(3, classes), Arguments(reduction="sum"))


@every_dtype
@pytest.mark.parametrize("rows", [0, 1, 2, 47, 48, 49, 129])
@pytest.mark.parametrize("classes", [10, 300, 1100])
def test_awkward_numbers_of_rows(dtype: torch.dtype, classes: int, rows: int) -> None:
    torch.manual_seed(rows)
    for reduction in ("mean", "none"):
        outputs = EVERYTHING if classes < 1000 else ("lse",)
        a = Arguments(reduction=reduction, outputs=outputs, z_loss=0.01)
        check(logits_of(rows, classes, dtype), targets_of(rows, classes), a)


@every_dtype
@pytest.mark.parametrize(("rows", "classes"), [(1, 40001), (3, 20011), (2, 100003), (70, 14303)])
def test_rows_cut_into_spans(dtype: torch.dtype, rows: int, classes: int) -> None:
    """With log_prob, only rows too long for UB, or much work, are split. One block merges and reduces up to 64 rows."""
    torch.manual_seed(rows)
    outputs = EVERYTHING if rows * classes > 200_000 else tuple(name for name in EVERYTHING if name != "log_prob")
    a = Arguments(outputs=outputs, z_loss=0.01, label_smoothing=0.1, weight=torch.rand(classes), reduction="none")
    for reduction in ("none", "mean"):
        options = a._replace(reduction=reduction)
        result = check(logits_of(rows, classes, dtype), targets_of(rows, classes, 0.1), options)
        assert result.plan.forward.spans > 1 and result.plan.merge_blocks == (2 if rows > 64 else 1)
        assert result.plan.reduces == (rows <= 64)


@every_dtype
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (13, 1000), (1999, 10), (17, 1100), (2, 9001)])
def test_one_block_reduces_its_rows(dtype: torch.dtype, rows: int, classes: int) -> None:
    """Also of several groups. In the last one, the lanes behind its rows hold values of the group before."""
    torch.manual_seed(rows)
    plain, all_terms = Arguments(), Arguments(weight=torch.rand(classes), z_loss=0.1, outputs=("z_loss", "log_prob"))
    for a in (plain, all_terms):
        for reduction in ("mean", "sum", "none"):
            options = a._replace(reduction=reduction)
            result = check(logits_of(rows, classes, dtype), targets_of(rows, classes, 0.1), options)
            assert result.plan.reduces and result.plan.reduce_blocks == 0 and len(result.reports) == 1


def test_many_rows() -> None:
    """Each core has several groups, of several tiles, of several steps."""
    a = Arguments(z_loss=0.1, weight=torch.rand(7), outputs=("log_prob",))
    result = check(logits_of(33000, 7, torch.float16), targets_of(33000, 7), a, cores=3)
    tiling = result.plan.forward
    assert tiling.step_rows < tiling.tile_rows < tiling.group_units < 11000


@pytest.mark.parametrize("sum_rows", [1, 2, 8, 64])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 129, 500])
def test_reduction(sum_rows: int, rows: int) -> None:
    """Sums of any number of rows, reduced by one block and by several."""
    torch.manual_seed(rows)
    logits, target, weight = logits_of(rows, 5, torch.float32), targets_of(rows, 5), torch.rand(5)
    weight[2] = 0
    options: list[dict] = [{}, {"weight": weight}, {"z_loss": 0.1}, {"weight": weight, "z_loss": 0.1}]
    for option in options:
        for reduction in ("mean", "sum", "none"):
            a = Arguments(reduction=reduction, outputs=("z_loss",), **option)
            for reduce_sums in (3, 16384):
                check(logits, target, a, cores=7, sums=(sum_rows, reduce_sums))


def test_reduction_of_several_reads() -> None:
    a = Arguments(weight=torch.rand(3), reduction="sum", z_loss=0.1)
    result = check(logits_of(10001, 3, torch.float32), targets_of(10001, 3), a, sums=(1, 5001))
    assert result.plan.reduce_blocks == 2


@pytest.mark.parametrize("rows", [130, 600])
def test_what_the_sums_leave_out(rows: int) -> None:
    """Ignored rows add nothing, whatever they hold. A row whose target is no class counts, and makes the sum NaN."""
    logits, target = logits_of(rows, 10, torch.float32), torch.randint(10, (rows,))
    logits[::3], target[::3] = NAN, -100
    target[rows - 1] = -100  # the lanes behind it hold values of the group's earlier rows
    a = Arguments(weight=torch.rand(10) + 0.1, reduction="sum")
    for cores in (1, 48):
        result = forward(logits, target, a, cores)
        kept = target != -100
        want, peer = truths(logits[kept], target[kept], a)
        for name in ("loss", "denominators"):
            assert_close(name, result.tensors[name], want[name], peer[name], 0)
    target[1] = 10
    result = forward(logits, target, Arguments())
    assert result.message == "" and result.loss.isnan()
    assert torch.equal(result.denominators, (target != -100).sum().float().expand(2))


@every_dtype
@pytest.mark.parametrize("classes", [9, 129, 1003, 3001])
def test_rows_that_begin_anywhere(dtype: torch.dtype, classes: int) -> None:
    logits, target = logits_of(11, classes, dtype), targets_of(11, classes)
    for gap in (1, 5, 31):
        check(logits, target, Arguments(outputs=("log_prob",)), row_stride=classes + gap)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("rows", "classes"), [(21, 10), (21, 260), (6, 1500), (3, 9000)])
def test_options(name: str, rows: int, classes: int) -> None:
    torch.manual_seed(classes)
    for dtype, reduction in zip(DTYPES, ("none", "mean", "sum"), strict=True):
        a = arguments_of(OPTIONS[name], classes)._replace(reduction=reduction)
        check(logits_of(rows, classes, dtype), targets_of(rows, classes, ignore_index=a.ignore_index), a)


@pytest.mark.parametrize("name", ["everything", "weighted_smoothing", "log_prob", "statistics"])
@pytest.mark.parametrize("classes", [10, 100, 1024, 30000])
@every_dtype
def test_what_takes_most_of_ub(dtype: torch.dtype, classes: int, name: str) -> None:
    """The plan counts UB as the kernels do: with so many rows, tiles are the largest, and each row has one span."""
    torch.manual_seed(classes)
    a = arguments_of(OPTIONS[name], classes)
    check(logits_of(2, classes, dtype), targets_of(2, classes), a, plan_rows=1200 if classes > 1000 else 70_000)


@every_dtype
def test_rows_kept_for_log_prob(dtype: torch.dtype) -> None:
    for classes in (5000, 20000):
        a = Arguments(outputs=("log_prob",), weight=torch.rand(classes), label_smoothing=0.1)
        result = check(logits_of(7, classes, dtype), targets_of(7, classes), a, cores=1, plan_rows=1001)
        tiling = result.plan.forward
        assert tiling.kept_tiles * tiling.tile_columns >= classes


@every_dtype
@pytest.mark.parametrize("name", ["log_prob", "everything", "scaled_softcap"])
def test_rows_read_again_for_log_prob(dtype: torch.dtype, name: str) -> None:
    """Rows larger than UB: more than a group of them, and a single one."""
    classes = 70001
    a = arguments_of(OPTIONS[name] | {"outputs": OPTIONS[name].get("outputs", ("log_prob",))}, classes)
    for rows in (9, 1) if name == "log_prob" else (2,):
        target = targets_of(rows, classes)
        result = check(logits_of(rows, classes, dtype), target, a, cores=1, row_stride=classes + 3, plan_rows=1001)
        tiling = result.plan.forward
        assert 0 < tiling.kept_tiles * tiling.tile_columns < classes


@every_dtype
@pytest.mark.parametrize("classes", [65537, 70001, 100003])  # primes
def test_what_stays_of_a_row_is_not_read_again(dtype: torch.dtype, classes: int) -> None:
    a = Arguments(outputs=("log_prob",))
    result = check(logits_of(3, classes, dtype), targets_of(3, classes), a, cores=1, plan_rows=1001)
    tiling = result.plan.forward
    again = (-(-classes // tiling.tile_columns) - tiling.kept_tiles) * tiling.tile_columns
    logits = 3 * (classes + again) * dtype.itemsize
    assert 0 < again < classes
    assert logits <= result.total("gm_bytes_read") <= logits + 1024  # and targets, and the reduction's sums


@pytest.mark.parametrize("classes", [10, 300, 1500, 30000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_special_rows(dtype: torch.dtype, classes: int) -> None:
    torch.manual_seed(classes)
    logits, target = logits_of(12, classes, dtype), torch.zeros(12, dtype=torch.long)
    logits[0, 1:] = -INF  # all but the target are masked
    logits[1, :5] = -INF  # the target is masked too
    logits[2] = -INF
    logits[3, classes - 1] = NAN
    logits[4, 3] = INF
    logits[5, 2] = logits[5, 5] = NAN  # the first is the argmax
    logits[6] = -INF
    logits[6, classes // 2] = 1.0
    logits[7] = 1e18
    logits[8] *= 1000
    logits[9, 4] = NAN
    target[9] = -100  # ignored, so its loss is 0
    logits[10] = 2.5  # a tie
    a = Arguments(reduction="none", outputs=EVERYTHING, z_loss=0.01)
    result = forward(logits, target, a)
    assert result.message == ""
    truth, peer = truths(logits, target, a)
    for name in ("loss", "lse"):
        want = truth[name].clone()
        want[[2, 4]] = NAN  # where float64 gives inf
        assert_close(name, result.tensors[name], want, peer[name], 0)
    rows = [0, 1, 6, 8, 10, 11]
    for name in ("entropy", "log_prob"):
        assert_close(name, result.optional[name][rows], truth[name][rows], peer[name][rows], 1e-6)
    assert result.optional["log_prob"][2].isnan().all()
    assert torch.equal(result.optional["argmax"], truth["argmax"])
    assert result.loss[9] == 0 and result.optional["z_loss"][9] == 0


@every_dtype
@pytest.mark.parametrize("classes", [10, 300, 1500, 9000])
def test_targets_that_are_no_class(dtype: torch.dtype, classes: int) -> None:
    logits = logits_of(10, classes, dtype)
    wrong = [classes, -1, 2**31 - 1, -(2**31), 2**31, 2**32, 2**32 + 1, -(2**63), 2**63 - 1]
    target = torch.tensor([*wrong, 3])
    for weight in (None, torch.rand(classes)):
        a = Arguments(reduction="none", weight=weight)
        result = forward(logits, target, a)
        assert result.message == ""  # nothing out of bounds was read
        assert result.loss[:-1].isnan().all() and result.loss[-1].isfinite()
        result = forward(logits, target, a._replace(reduction="mean"))
        assert result.loss.isnan().all()


@pytest.mark.parametrize("ignore_index", [-100, 0, 2**31 - 1, -(2**31), 2**32 + 5, -(2**63)])
def test_any_ignore_index(ignore_index: int) -> None:
    logits = logits_of(6, 12, torch.float32)
    target = torch.tensor([5, ignore_index, 5, ignore_index, 7, 5])
    check(logits, target, Arguments(ignore_index=ignore_index))


def test_int32_targets() -> None:
    for classes in (10, 1500):
        target = targets_of(9, classes).int()
        check(logits_of(9, classes, torch.float32), target, Arguments(weight=torch.rand(classes)))
        target[3] = 2**31 - 1
        result = forward(logits_of(9, classes, torch.float32), target, Arguments(reduction="none"))
        assert result.message == "" and result.loss[3].isnan() and result.loss[4:].isfinite().all()


def test_every_row_ignored() -> None:
    target = torch.full((5,), -100)
    for classes in (10, 1500):
        assert check(logits_of(5, classes, torch.float32), target, Arguments()).loss.isnan().all()
        assert check(logits_of(5, classes, torch.float32), target, Arguments(reduction="sum")).loss == 0


@pytest.mark.parametrize(("rows", "classes"), [(70, 10), (70, 300), (5, 20000), (61, 2000), (501, 1100)])
def test_the_same_bits_on_any_number_of_cores(rows: int, classes: int) -> None:
    torch.manual_seed(1)
    logits, target = logits_of(rows, classes, torch.bfloat16), targets_of(rows, classes)
    a = arguments_of(OPTIONS["everything"], classes)
    first = forward(logits, target, a, 48)
    for cores in (1, 7, 20, 40):
        other = forward(logits, target, a, cores)
        assert other.message == ""
        for name, tensor in first.tensors.items():
            assert torch.equal(tensor.view(torch.uint8), other.tensors[name].view(torch.uint8)), (name, cores)


def test_addresses_beyond_32_bits() -> None:
    """Rows 2^31 elements apart, in gaps of 2^32 bytes, which no copy's stride holds. Untouched pages take no memory."""
    logits, target = logits_of(3, 10, torch.bfloat16), torch.tensor([1, 2, 3])
    check(logits, target, Arguments(outputs=("lse",)), row_stride=2**31 + 100)
    logits, target = logits_of(3, 1500, torch.bfloat16), torch.tensor([1, 2, 1499])
    check(logits, target, Arguments(outputs=("lse",)), row_stride=2**31 + 1)


def test_random_problems() -> None:
    """A short run of tests/programs/fuzz_npu_forward.py."""
    chance = random.Random(5)
    for _ in range(250):
        check(*any_case(chance))
