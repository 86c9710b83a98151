# SPDX-License-Identifier: Apache-2.0
"""The tests start from the same seed, in processes that torch_npu does not enter unasked, and none is skipped."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

os.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)  # tests say themselves which processes leave torch_npu alone

import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No machine lacks what these tests need, so none has a reason to be skipped."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} may not be skipped: {report.longrepr}"
    return report
