# SPDX-License-Identifier: Apache-2.0
"""The costs of the backward kernels on the virtual NPU are as promised, and as recorded."""

from __future__ import annotations

import pytest
import torch
from backward_cases import DTYPES, Backward, backward_in, inputs_of
from npu_counts import BACKWARD, MARGIN, count_backward
from recorded_counts import require_as_recorded

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(scope="module")
def backward(tmp_path_factory: pytest.TempPathFactory) -> Backward:
    return backward_in(tmp_path_factory.mktemp("backward"))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.066), (torch.bfloat16, 0.10)])
def test_what_a_wide_row_costs(backward: Backward, dtype: torch.dtype, most: float) -> None:
    """Vector repeats for each element, and bytes relative to the logits. Two cores, so that each has many rows."""

    def cost(**options: object) -> dict[str, float]:
        inputs = inputs_of(128, 8080, dtype, reduction="mean", ignored=0, **options)
        counters, elements = backward(inputs, cores=2).counters, inputs.logits.numel()
        moved = {name: counters[f"gm_bytes_{name}"] / elements / dtype.itemsize for name in ("read", "written")}
        counted = {name: counters[name] / elements for name in ("vector_repeats", "bank_conflicts")}
        return {**counted, **moved}

    plain = cost()
    assert plain["vector_repeats"] <= most
    assert plain["bank_conflicts"] <= 0.0005  # casts within a third of UB would cost 0.008
    assert plain["read"] <= 1.02
    assert plain["written"] == 1
    assert cost(label_smoothing=0.1)["vector_repeats"] <= plain["vector_repeats"] + 0.05
    assert cost(label_smoothing=0.1, weight=True)["vector_repeats"] <= plain["vector_repeats"] + 0.05
    assert cost(softcap=30.0)["vector_repeats"] <= plain["vector_repeats"] + 0.11


def test_all_that_is_read_goes_round_the_l2(backward: Backward) -> None:
    """All reads bypass the L2, also those of log_prob's gradient: otherwise reads and writes would share HBM's rate."""
    inputs = inputs_of(1100, 8080, torch.float32, ("log_prob",))
    (report,) = (each for each in backward(inputs).reports if "wide" in each["kernel"])
    through = (report["total"]["gm_bytes_read"] + report["total"]["gm_bytes_written"]) / 1.6e6
    launch = 12.9
    assert report["estimates"]["table"]["microseconds"] - launch < 0.75 * through


@every_dtype
def test_what_narrow_rows_cost(backward: Backward, dtype: torch.dtype) -> None:
    """Two cores, with as many rows each as one of 48 cores has of 65,536."""
    rows, classes = 2731, 10
    inputs = inputs_of(rows, classes, dtype, reduction="mean", ignored=0)
    counters, elements = backward(inputs, cores=2).counters, inputs.logits.numel()
    per_row = 8 + 2 * 4  # target and row_stats
    assert counters["gm_bytes_read"] <= 1.01 * (elements * dtype.itemsize + rows * per_row)
    assert counters["vector_repeats"] / elements <= 0.5
    copies = counters["dma_reads"] + counters["dma_writes"]
    assert (counters["gm_bytes_read"] + counters["gm_bytes_written"]) / copies >= 8 * 1024


def test_costs_are_as_recorded(backward: Backward) -> None:
    require_as_recorded(BACKWARD, count_backward(backward), more=MARGIN, less=MARGIN)
