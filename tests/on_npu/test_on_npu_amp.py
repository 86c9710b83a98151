# SPDX-License-Identifier: Apache-2.0
"""The virtual device's operators for automatic mixed precision, compared with torch's on the CPU."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("wrong", [None, torch.inf, -torch.inf, torch.nan], ids=str)
def test_what_a_grad_scaler_asks_for(wrong: float | None) -> None:
    """Unscaling, for gradients of two dtypes; then scale updates that grow, keep, back off, and cannot grow."""
    finite, maybe = torch.randn(3, 7), torch.randn(5, 4).half().t()
    if wrong is not None:
        maybe[1, 2] = wrong
    results = []
    for place in ("cpu", "npu"):
        gradients = [finite.to(place, copy=True), maybe.to(place, copy=True)]
        found, inverse = torch.zeros(1, device=place), torch.full((1,), 2.0, device=place).reciprocal()
        for gradient in reversed(gradients):
            torch._amp_foreach_non_finite_check_and_unscale_([gradient], found, inverse)
        scale, tracker = torch.full((1,), 3.0, device=place), torch.zeros(1, dtype=torch.int32, device=place)
        scales = []
        for factor in (2.0, 2.0, torch.inf, torch.inf):
            torch._amp_update_scale_(scale, tracker, found, factor, 0.25, 2)
            scales += [scale.clone(), tracker.clone()]
        results.append([t.cpu() for t in (*gradients, found, *scales)])
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
