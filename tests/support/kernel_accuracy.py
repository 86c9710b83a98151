# SPDX-License-Identifier: Apache-2.0
"""Bounds on the errors of the CPU kernels' outputs, from rounding only."""

from __future__ import annotations

import numpy as np
from kernel_problems import Problem, rounded, truth

NAN = np.nan
# For each dtype, the unit roundoff, and the smallest subnormal.
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8, "float16": 2.0**-11}
SMALLEST = {"float32": 2.0**-149, "float64": 5e-324, "bfloat16": 2.0**-133, "float16": 2.0**-24}


def assert_close(problem: Problem, name: str, got: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> None:
    label = f"{problem.name} {problem.dtype} {problem.logits.shape}: {name}"
    assert (np.isnan(got) == np.isnan(expected)).all(), f"{label}: NaN in different places"
    same = (got == expected) | np.isnan(expected)
    with np.errstate(invalid="ignore"):
        excess = np.where(same, 0, np.abs(got - expected) / allowed)
    assert excess.size == 0 or excess.max() <= 1, f"{label}: {excess.max():.3g} times the allowed error"


@np.errstate(invalid="ignore")
def assert_true(problem: Problem, got: dict[str, np.ndarray]) -> None:
    expected = truth(problem)
    acc_unit, unit = UNIT[problem.acc], UNIT[problem.dtype]
    # The error of float arithmetic on a logit. NaN and infinite logits are compared exactly.
    finite = np.where(np.isfinite(problem.logits), np.abs(problem.logits), 0)
    logit_error = 8 * acc_unit * (1 + abs(problem.logit_scale) * finite.max(initial=0))
    # Rows are summed in double: for float64 that is no wider than the terms, so each addition rounds.
    in_order = len(problem.logits) if problem.dtype == "float64" else 0
    for name, value in got.items():
        true = expected[name]
        if name == "row_stats":  # where the sum is NaN, any max is accepted
            true[0, np.isnan(true[1])] = value[0, np.isnan(value[1])] = NAN
        if name == "gradient":
            # exp turns an absolute error of its argument into a relative one.
            relative = 1.25 * unit + 8 * logit_error + in_order * acc_unit
            allowed = relative * expected["gradient_terms"] + 2 * SMALLEST[problem.dtype]
            allowed += logit_error * expected["cancelled"]  # log_prob and entropy are rounded before they are added
            allowed += acc_unit * expected["summed"]  # the sum over a block is in the accumulation dtype
            # The double sum 1 + rest rounds the small rest of a confident row, on which its target's gradient depends.
            allowed[np.arange(len(allowed)), expected["target"]] += 2.0**-52 * expected["hard"]
        elif name == "log_prob":
            allowed = unit * np.abs(true) + 4 * logit_error + SMALLEST[problem.dtype]
        elif name == "argmax":
            allowed = np.zeros(1)
        elif name == "denominators":
            allowed = (4 + in_order) * acc_unit * np.abs(true)
        elif name in ("row_stats", "lse"):
            allowed = 4 * logit_error + 4 * acc_unit * np.abs(true)
        else:
            allowed = (8 + in_order) * acc_unit * np.abs(true) + 16 * logit_error * (1 + problem.z_loss * 100)
            if problem.half_loss and name != "entropy":
                true = rounded(np.asarray(true), problem.dtype)  # may overflow float16
                allowed += 2 * UNIT[problem.dtype] * np.abs(true) + SMALLEST[problem.dtype]
        assert_close(problem, name, value, true, np.maximum(np.abs(allowed), 1e-300))
