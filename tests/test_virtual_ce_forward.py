# SPDX-License-Identifier: Apache-2.0
"""The forward kernels on the virtual CANN: the numbers against float64, the judge's verdict, the counters' bars."""

from __future__ import annotations

import random

import oracle
import pytest
import torch
from npu_kernels import Arguments, Forward, forward
from torch import Tensor

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EVERYTHING = ("z_loss", "log_prob", "lse", "argmax", "entropy")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def logits_of(rows: int, classes: int, dtype: torch.dtype, scale: float = 3.0) -> Tensor:
    return (torch.randn(rows, classes) * scale).to(dtype)


def targets_of(rows: int, classes: int, ignored: float = 0.2, ignore_index: int = -100) -> Tensor:
    target = torch.randint(classes, (rows,))
    target[torch.rand(rows) < ignored] = ignore_index
    if rows > 2:
        target[0], target[-1] = classes - 1, 0
    return target


def truths(logits: Tensor, target: Tensor, a: Arguments) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The textbook formula in float64, and in float32 as the peer; targets that are no class make NaN of their row."""
    options = oracle.Options(a.reduction, a.ignore_index, a.label_smoothing, a.z_loss, a.softcap or None, a.logit_scale)
    weight = a.weight
    results = []
    for dtype in (torch.float64, torch.float32):
        w = None if weight is None else weight.to(dtype)
        result = oracle.truth(logits.to(dtype), target.long(), w, options)._asdict()
        x = logits.to(dtype) * a.logit_scale
        x = a.softcap * torch.tanh(x / a.softcap) if a.softcap else x
        max_ = x.amax(1) if x.shape[0] else x.new_zeros(0)
        result["row_stats"] = torch.stack([max_, result["lse"] - max_])
        counted = target != a.ignore_index
        weights = torch.ones(x.shape[1], dtype=dtype) if w is None else w
        result["denominators"] = torch.stack([weights[target[counted].long()].sum(), counted.sum().to(dtype)])
        results.append(result)
    return results[0], results[1]


def assert_close(name: str, got: Tensor, truth: Tensor, peer: Tensor, slack: float) -> None:
    """NaN and inf where they belong. Else an error of at most twice the peer's, or 1e-6 relative, and the rounding to
    the output's dtype."""
    truth, peer = truth.reshape(got.shape).double(), peer.reshape(got.shape).double()
    assert torch.equal(got.isnan(), truth.isnan()), name
    infinite = truth.isinf()
    assert torch.equal(got[infinite].double(), truth[infinite]), name
    finite = truth.isfinite()
    if not finite.any():
        return
    got, truth, peer = got[finite], truth[finite], peer[finite]
    peer_error = (peer - truth).abs().nan_to_num().max()
    bound = torch.maximum(2 * peer_error, 1e-6 * truth.abs().max()) + slack
    if got.dtype != torch.float32:
        smallest = torch.finfo(got.dtype).smallest_normal
        bound = bound + truth.abs().clamp_min(smallest) * torch.finfo(got.dtype).eps / 2 * 1.001
    error = (got.double() - truth).abs()
    assert (error <= bound).all(), f"{name}: error {error.max():.3g}, bound {bound.max():.3g}"


def check(
    logits: Tensor,
    target: Tensor,
    a: Arguments,
    cores: int = 48,
    row_stride: int | None = None,
    plan_rows: int | None = None,
) -> Forward:
    result = forward(logits, target, a, cores, row_stride, plan_rows)
    assert result.message == ""
    assert all(not report["violations"] for report in result.reports)
    truth, peer = truths(logits, target, a)
    # exp(2u) is rounded relative to 1, and with it the softcap to a rounding of the cap.
    slack = 4 * a.softcap * 2**-24
    for name, got in result.tensors.items():
        if name == "argmax":
            assert torch.equal(got, truth["argmax"]), name
        else:
            assert_close(name, got, truth[name], peer[name], slack)
    return result


# One class; below, at and above a block, a vector repeat, strides by blocks, the narrow layout, a tile; several tiles.
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
@pytest.mark.parametrize(("rows", "classes"), [(1, 4096), (3, 40000), (49, 3001), (2, 100003)])
def test_rows_cut_into_spans(dtype: torch.dtype, rows: int, classes: int) -> None:
    torch.manual_seed(rows)
    a = Arguments(outputs=EVERYTHING, z_loss=0.01, label_smoothing=0.1, weight=torch.rand(classes), reduction="none")
    result = check(logits_of(rows, classes, dtype), targets_of(rows, classes, 0.1), a)
    assert result.plan.forward.spans > 1 and result.plan.merge_blocks > 0


def test_many_rows() -> None:
    """Several launches of the reduction, several groups of a core."""
    a = Arguments(z_loss=0.1, weight=torch.rand(7))
    result = check(logits_of(33000, 7, torch.float16), targets_of(33000, 7), a, cores=3)
    assert result.plan.reduce_blocks == 3


@every_dtype
@pytest.mark.parametrize("classes", [9, 129, 1003, 3001])
def test_rows_that_begin_anywhere(dtype: torch.dtype, classes: int) -> None:
    logits, target = logits_of(11, classes, dtype), targets_of(11, classes)
    for gap in (1, 5, 31):
        check(logits, target, Arguments(outputs=("log_prob",)), row_stride=classes + gap)


OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "weights": {"weight": True},
    "weighted_smoothing": {"weight": True, "label_smoothing": 0.3},
    "only_smoothing": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 0.01, "outputs": ("z_loss",)},
    "z_loss_not_returned": {"z_loss": 0.01},
    "z_loss_of_nothing": {"outputs": ("z_loss",)},
    "softcap": {"softcap": 20.0},
    "scale": {"logit_scale": 0.7},
    "negative_scale": {"logit_scale": -1.5},
    "zero_scale": {"logit_scale": 0.0},
    "scaled_softcap": {"softcap": 5.0, "logit_scale": -0.5},
    "ignored_class": {"ignore_index": 1},
    "log_prob": {"outputs": ("log_prob",)},
    "statistics": {"outputs": ("lse", "entropy", "argmax")},
    "half_loss": {"loss_dtype": torch.float16},
    "bfloat16_loss": {"loss_dtype": torch.bfloat16, "z_loss": 0.1, "outputs": ("z_loss",)},
    "everything": {
        "weight": True,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "softcap": 30.0,
        "logit_scale": 1.1,
        "outputs": EVERYTHING,
    },
}


def arguments_of(options: dict, classes: int) -> Arguments:
    weight = torch.rand(classes) if options.get("weight") else None
    return Arguments(**{**options, "weight": weight})


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("rows", "classes"), [(21, 10), (21, 260), (6, 1500), (3, 9000)])
def test_options(name: str, rows: int, classes: int) -> None:
    torch.manual_seed(classes)
    for dtype, reduction in zip(DTYPES, ("none", "mean", "sum"), strict=True):
        a = arguments_of(OPTIONS[name], classes)._replace(reduction=reduction)
        check(logits_of(rows, classes, dtype), targets_of(rows, classes, ignore_index=a.ignore_index), a)


@pytest.mark.parametrize("name", ["everything", "weighted_smoothing", "log_prob", "statistics"])
@pytest.mark.parametrize("classes", [1024, 30000])
@every_dtype
def test_what_takes_most_of_ub(dtype: torch.dtype, classes: int, name: str) -> None:
    """The plan's count of UB is the kernels' own: 1200 rows are one span each, and have the largest tiles there are."""
    torch.manual_seed(classes)
    a = arguments_of(OPTIONS[name], classes)
    check(logits_of(2, classes, dtype), targets_of(2, classes), a, plan_rows=1200)


@every_dtype
def test_rows_kept_for_log_prob(dtype: torch.dtype) -> None:
    for classes in (5000, 20000):
        a = Arguments(outputs=("log_prob",), weight=torch.rand(classes), label_smoothing=0.1)
        result = check(logits_of(7, classes, dtype), targets_of(7, classes), a, cores=1, plan_rows=1001)
        assert result.plan.forward.keep_row


@pytest.mark.parametrize("classes", [10, 300, 1500, 30000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_special_rows(dtype: torch.dtype, classes: int) -> None:
    torch.manual_seed(classes)
    logits, target = logits_of(12, classes, dtype), torch.zeros(12, dtype=torch.long)
    logits[0, 1:] = -INF  # all but the target masked
    logits[1, :5] = -INF  # the target too
    logits[2] = -INF
    logits[3, classes - 1] = NAN
    logits[4, 3] = INF
    logits[5, 2] = logits[5, 5] = NAN  # the first counts
    logits[6] = -INF
    logits[6, classes // 2] = 1.0
    logits[7] = 1e18
    logits[8] *= 1000
    logits[9, 4] = NAN
    target[9] = -100  # ignored, and so 0
    logits[10] = 2.5  # a tie
    a = Arguments(reduction="none", outputs=EVERYTHING, z_loss=0.01)
    result = forward(logits, target, a)
    assert result.message == ""
    truth, peer = truths(logits, target, a)
    for name in ("loss", "lse"):
        want = truth[name].clone()
        want[[2, 4]] = NAN  # where float64 says inf
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
        assert result.message == ""  # nothing outside was read
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


def traffic(result: Forward, logits: Tensor) -> tuple[float, float, float]:
    """Bytes read and written over those of the logits, and vector repeats per element."""
    size = logits.numel() * logits.element_size()
    read, written = result.total("gm_bytes_read") / size, result.total("gm_bytes_written") / size
    return read, written, result.total("vector_repeats") / logits.numel()


REPEATS = {torch.float32: 0.066, torch.float16: 0.085, torch.bfloat16: 0.085}
REPEATS_WITH_LOG_PROB = {torch.float32: 0.10, torch.float16: 0.135, torch.bfloat16: 0.135}


@every_dtype
@pytest.mark.parametrize(("rows", "classes"), [(960, 1000), (384, 8080), (337, 20000)])
def test_one_read(dtype: torch.dtype, rows: int, classes: int) -> None:
    logits = logits_of(rows, classes, dtype)
    read, written, repeats = traffic(forward(logits, targets_of(rows, classes)), logits)
    assert 1 <= read <= 1.02
    assert written < 0.01
    assert classes < 8080 or repeats <= REPEATS[dtype]


@every_dtype
@pytest.mark.parametrize(("rows", "classes", "reads"), [(384, 8080, 1), (350, 20000, 1), (337, 70000, 2)])
def test_reads_and_writes_with_log_prob(dtype: torch.dtype, rows: int, classes: int, reads: int) -> None:
    if reads == 2:
        rows = 60  # what is beyond UB needs no balance
    logits = logits_of(rows, classes, dtype)
    result = forward(logits, targets_of(rows, classes), Arguments(outputs=("log_prob",)))
    read, written, repeats = traffic(result, logits)
    assert reads <= read <= reads + 0.02
    assert 1 <= written <= 1.01
    assert repeats <= REPEATS_WITH_LOG_PROB[dtype]


@pytest.mark.parametrize(
    ("name", "more"), [("smoothing", 0.05), ("weights", 0.05), ("weighted_smoothing", 0.1), ("softcap", 0.11)]
)
def test_what_options_cost(name: str, more: float) -> None:
    logits, target = logits_of(384, 8080, torch.float32), targets_of(384, 8080)
    with_it = traffic(forward(logits, target, arguments_of(OPTIONS[name], 8080)), logits)
    assert with_it[2] <= REPEATS[torch.float32] + more


@pytest.mark.parametrize(("dtype", "bytes_of_copy"), [(torch.float32, 16384), (torch.bfloat16, 8192)])
def test_rows_of_ten(dtype: torch.dtype, bytes_of_copy: int) -> None:
    """Beside the logits, the targets are read twice, and what the reduction adds up is read once."""
    rows = 40000
    logits = logits_of(rows, 10, dtype)
    result = forward(logits, targets_of(rows, 10))
    read, _, repeats = traffic(result, logits)
    of_targets = 2 * 8 * rows / (logits.numel() * logits.element_size())
    of_terms = 4 * rows / (logits.numel() * logits.element_size())
    assert read - of_targets - of_terms <= 1.01
    assert repeats <= 0.5
    assert max(int(size) for core in result.reports[0]["cores"] for size in core["dma_sizes"]) >= bytes_of_copy


def test_addresses_beyond_32_bits() -> None:
    """Rows 2^31 elements apart: only what is touched is ever memory."""
    logits, target = logits_of(3, 10, torch.bfloat16), torch.tensor([1, 2, 3])
    check(logits, target, Arguments(outputs=("lse",)), row_stride=2**31 + 1)
    logits, target = logits_of(3, 1500, torch.bfloat16), torch.tensor([1, 2, 1499])
    check(logits, target, Arguments(outputs=("lse",)), row_stride=2**31 + 1)


def test_random_problems() -> None:
    """What tests/fuzz_npu_forward.py does for longer."""
    from fuzz_npu_forward import any_case

    chance = random.Random(5)
    for _ in range(200):
        check(*any_case(chance))
