# SPDX-License-Identifier: Apache-2.0
"""Seeds every test alike, keeps torch_npu out of processes unless a test wants it, and fails a test that is skipped."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

os.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)  # tests decide which processes load torch_npu

import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test fails: no machine lacks what these tests need."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} may not be skipped: {report.longrepr}"
    return report
