# SPDX-License-Identifier: Apache-2.0
"""A short run of tests/programs/fuzz_kernels.py: random problems for the CPU kernels under sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_kernels import FASTEST, SANITIZERS, Sanitizer, fuzz
from kernel_builds import compile_driver

SEED = 1


@pytest.mark.parametrize(
    "sanitizer",
    [pytest.param(one, marks=[] if one is SANITIZERS[0] else pytest.mark.exhaustive) for one in SANITIZERS],
    ids=str,
)
def test_a_sanitizer_finds_nothing(sanitizer: Sanitizer, tmp_path: Path) -> None:
    if reason := sanitizer.why_it_cannot_run(tmp_path):
        pytest.skip(reason)
    fuzz(compile_driver(FASTEST, tmp_path, sanitizer.flags), sanitizer, SEED, range(200))
