# SPDX-License-Identifier: Apache-2.0
"""The bytes that the forward kernels read and write, and their instructions, by the virtual NPU's counters."""

from __future__ import annotations

import pytest
import torch
from npu_counts import FORWARD, MARGIN, count_forward
from npu_forward_check import DTYPES, OPTIONS, arguments_of, logits_of, targets_of
from npu_kernels import Arguments, Forward, forward
from recorded_counts import require_as_recorded
from torch import Tensor

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def traffic(result: Forward, logits: Tensor) -> tuple[float, float, float]:
    """Bytes read and written, relative to those of the logits, and vector repeats for each element."""
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


# Conflicts for each element. Trees in place would cost 0.02, casts within a third of UB 0.008. float32 keeps the max's.
CONFLICTS = {torch.float32: 0.012, torch.float16: 0.004, torch.bfloat16: 0.004}


@every_dtype
@pytest.mark.parametrize(("rows", "classes"), [(384, 8080), (337, 20000), (48, 70001)])
def test_few_banks_are_in_each_others_way(dtype: torch.dtype, rows: int, classes: int) -> None:
    result = forward(logits_of(rows, classes, dtype), targets_of(rows, classes))
    assert result.plan.forward.apart
    assert result.total("bank_conflicts") / (rows * classes) <= CONFLICTS[dtype]


@every_dtype
@pytest.mark.parametrize(("rows", "classes", "reads"), [(384, 8080, 1), (350, 20000, 1), (60, 20000, 2)])
def test_reads_and_writes_with_log_prob(dtype: torch.dtype, rows: int, classes: int, reads: int) -> None:
    logits = logits_of(rows, classes, dtype)
    result = forward(logits, targets_of(rows, classes), Arguments(outputs=("log_prob",)))
    read, written, repeats = traffic(result, logits)
    assert reads <= read <= reads + 0.02
    assert 1 <= written <= 1.01
    assert repeats <= REPEATS_WITH_LOG_PROB[dtype]


@every_dtype
def test_rows_beyond_ub_are_read_again_in_part(dtype: torch.dtype) -> None:
    logits = logits_of(240, 70000, dtype)
    result = forward(logits, targets_of(240, 70000), Arguments(outputs=("log_prob",)))
    read, written, repeats = traffic(result, logits)
    assert 1.2 <= read <= (1.65 if dtype == torch.float32 else 1.4)
    assert 1 <= written <= 1.01
    assert repeats <= REPEATS_WITH_LOG_PROB[dtype]


@pytest.mark.parametrize(("rows", "kernel"), [(480, "forward_wide"), (60, "log_prob")])
def test_reads_round_the_l2_where_log_prob_is_written(rows: int, kernel: str) -> None:
    """Reads bypass the L2 there: otherwise reads and writes would share HBM's rate."""
    classes = 11_520_000 // rows
    logits = logits_of(rows, classes, torch.float32)
    result = forward(logits, targets_of(rows, classes), Arguments(outputs=("log_prob",)))
    report = next(report for report in result.reports if kernel in report["kernel"])
    through = (report["total"]["gm_bytes_read"] + report["total"]["gm_bytes_written"]) / 1.6e6
    launch = 12.9
    assert report["estimates"]["table"]["microseconds"] - launch < 0.85 * through


@pytest.mark.parametrize(
    ("name", "more"), [("smoothing", 0.05), ("weights", 0.05), ("weighted_smoothing", 0.1), ("softcap", 0.11)]
)
def test_what_options_cost(name: str, more: float) -> None:
    logits, target = logits_of(384, 8080, torch.float32), targets_of(384, 8080)
    with_it = traffic(forward(logits, target, arguments_of(OPTIONS[name], 8080)), logits)
    assert with_it[2] <= REPEATS[torch.float32] + more


@every_dtype
@pytest.mark.parametrize("outputs", [("lse",), ("lse", "log_prob")], ids=len)
def test_rows_of_ten(dtype: torch.dtype, outputs: tuple[str, ...]) -> None:
    """Logits and targets are read once, in few large copies."""
    logits, target = logits_of(65536, 10, dtype), targets_of(65536, 10)
    result = forward(logits, target, Arguments(outputs=outputs))
    read, written, repeats = traffic(result, logits)
    size = logits.nbytes
    assert read <= 1.01 * (size + target.nbytes) / size
    assert repeats <= 0.5
    copies = result.total("dma_reads") + result.total("dma_writes")
    assert (read + written) * size / copies >= 8192


def test_rows_do_not_leave_their_terms() -> None:
    """For narrow rows the workspace has only sums, for any number of rows. lse and row_stats are 12 bytes a row."""
    for rows in (41, 650, 2000):
        result = forward(logits_of(rows, 10, torch.bfloat16), targets_of(rows, 10))
        assert result.total("gm_bytes_written") <= 16 * rows + 100


def test_costs_are_as_recorded() -> None:
    require_as_recorded(FORWARD, count_forward(), more=MARGIN, less=MARGIN)
