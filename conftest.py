# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: the seed, the device of numeric tests, and which tests may not be skipped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# torch's idle threads would spin on cores that other workers need: the whole run would take half as long again.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)  # tests decide which processes load torch_npu

import torch

import npu_ce_jit  # noqa: F401  builds once, before any test, so that no test's time includes a compile

# tests/npu starts processes with an npu. In these, and on a board, the tests that use `any_device` or `device` run.
# Those of tests/on_npu also inject faults and read reports, which only the virtual NPU supports.
HAS_NPU = hasattr(torch, "npu") and torch.npu.is_available()
if HAS_NPU:
    from virtual_cann import observe
IS_VIRTUAL = HAS_NPU and observe.is_virtual()
TESTS_DIR = Path(__file__).parent / "tests"
ON_NPU_DIR = TESTS_DIR / "on_npu"
SIMULATORS_OWN_DIR = TESTS_DIR / "virtual_cann" / "tests"
NEED_ONLY_THE_VIRTUAL_CANN = [TESTS_DIR / name for name in ("npu", "npu_kernels")]
# The slowest files, of ten seconds and more on one core. They begin first, so that none runs alone at the end. Of
# these, files that do not need the build for the NPU come first.
BEGIN_FIRST = (
    "cli/test_commands", "cpu_kernels/test_cpu_kernels", "cpu_kernels/test_planar_kernels",
    "op/test_compiled_numbers", "interactive/test_rebuild",
    "distributed/test_parallel", "repository/test_troubleshooting", "op/test_export", "repository/test_examples",
    "npu/test_device", "npu/test_numbers", "npu_kernels/test_forward", "jit/test_npu_libraries",
    "npu_kernels/test_backward", "virtual_cann/tests/test_samples",
    "cli/test_console", "distributed/test_dtensor", "jit/test_fork", "op/test_linear_function",
)  # fmt: skip
collect_ignore = (["tests/npu"] if HAS_NPU else []) + ([] if IS_VIRTUAL else ["tests/on_npu"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the tests that are marked exhaustive")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, and every child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Naming a file or a test implies --all. xdist's workers always get names, so they take the option as given.
    if not hasattr(config, "workerinput") and config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        config.option.all = True


def pytest_report_header(config: pytest.Config) -> str:
    return "" if config.option.all else "exhaustive tests are left out: --all runs them, and so does naming their file"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The scheduler of `--dist loadfile`. A file's tests share what the first of them builds, so they stay together.

    Tests of tests/npu share nothing and take minutes, so they are distributed one by one. All tests of the NPU need an
    environment with torch_npu, the simulator and the kernels: this process builds them while the workers run other
    tests.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def schedule(self) -> None:
            is_first = self.collection is None
            super().schedule()
            of_the_npu = ("tests/npu/", "tests/npu_kernels/")
            if is_first and any(nodeid.startswith(of_the_npu) for nodeid in self.collection or ()):
                _build_for_the_npu(config)

        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return nodeid if file.startswith("tests/npu/") else file

    config.option.loadscopereorder = False  # pytest_collection_modifyitems has ordered them
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def _build_for_the_npu(config: pytest.Config) -> None:
    """Builds silently. Tests that do not find the result build again, and fail with that build's messages."""
    command = [sys.executable, TESTS_DIR / "virtual_cann" / "run", "python", "-m", "npu_ce_jit", "build"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603

    def end() -> None:
        child.send_signal(signal.SIGINT)  # stops its compilers too
        child.wait()

    config.add_cleanup(end)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def runs(item: pytest.Item) -> bool:
        if HAS_NPU and item.path.parent != ON_NPU_DIR and "any_device" not in getattr(item, "fixturenames", ()):
            return False
        # The tests of tests/npu use the simulator. The simulator's own tests run only if named.
        is_simulators = item.path.is_relative_to(SIMULATORS_OWN_DIR) and item.path.stem != "test_samples"
        return config.option.all or not (is_simulators or item.get_closest_marker("exhaustive"))

    here, others = [item for item in items if runs(item)], [item for item in items if not runs(item)]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = here
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    name = item.path.relative_to(TESTS_DIR).with_suffix("").as_posix()
    return BEGIN_FIRST.index(name) if name in BEGIN_FIRST else len(BEGIN_FIRST)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def any_device() -> torch.device:
    """An npu if there is one. For tests that need not launch kernels."""
    return torch.device("npu" if HAS_NPU else "cpu")


@pytest.fixture
def device(any_device: torch.device) -> Iterator[torch.device]:
    """The device of numeric tests; they make their inputs on the CPU and move them here.

    On a virtual npu, the test fails unless kernels of the forward pass ran and wrote there. The other passes are
    checked by tests/on_npu/test_on_npu_launches.py.
    """
    if IS_VIRTUAL:
        observe.clear_reports()
    yield any_device
    if HAS_NPU:
        torch.npu.synchronize()
    if IS_VIRTUAL:
        forward = [r for r in observe.reports() if r["kernel"].startswith("npu_ce_") and "backward" not in r["kernel"]]
        assert any(report["total"]["gm_bytes_written"] for report in forward), "the forward pass was not on the npu"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No machine lacks what the virtual CANN needs, so its tests may be skipped only where torch is too old."""
    report = yield
    if report.skipped and _needs_only_the_virtual_cann(item.path) and not _needs_another_torch(report):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} may not be skipped: {report.longrepr}"
    return report


def _needs_only_the_virtual_cann(file: Path) -> bool:
    return IS_VIRTUAL or any(file.is_relative_to(folder) for folder in NEED_ONLY_THE_VIRTUAL_CANN)


def _needs_another_torch(report: pytest.TestReport) -> bool:
    from torch_features import REASONS  # in tests/support, which only pytest puts on the path

    return isinstance(report.longrepr, tuple) and report.longrepr[2].removeprefix("Skipped: ") in REASONS
