# SPDX-License-Identifier: Apache-2.0
"""What every test shares: a seed, which device the numeric tests run on, and which tests may not be skipped."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch

import npu_ce_jit  # noqa: F401  builds once, before any test, so that no test's time holds a compile

HAS_NPU = hasattr(torch, "npu") and torch.npu.is_available()
# tests/test_on_npu.py starts a process with an npu for the tests that need one; in that process they are collected.
collect_ignore = ["tests/test_on_npu.py"] if HAS_NPU else ["tests/on_npu"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """The numeric tests make their inputs on the CPU and move them here."""
    return torch.device("cpu")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No machine lacks what the virtual CANN needs, so none of its tests has a reason to be skipped."""
    report = yield
    if report.skipped and _needs_only_the_virtual_cann(item.path):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} may not be skipped: {report.longrepr}"
    return report


def _needs_only_the_virtual_cann(file: Path) -> bool:
    return file.name.startswith("test_virtual_") or file.parent.name == "on_npu" or file.name == "test_on_npu.py"
