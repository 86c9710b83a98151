# SPDX-License-Identifier: Apache-2.0
"""What every test shares: a seed, and which device the numeric tests run on."""

from __future__ import annotations

import pytest
import torch

import npu_ce_jit  # noqa: F401  builds once, before any test, so that no test's time holds a compile


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """The numeric tests make their inputs on the CPU and move them here."""
    return torch.device("cpu")
