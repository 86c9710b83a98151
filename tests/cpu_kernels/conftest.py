# SPDX-License-Identifier: Apache-2.0
"""The kernel driver, for every instruction set that this machine can compile for and run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from kernel_builds import ISAS, Isa, compile_driver, why_it_cannot_run
from kernel_problems import Problem

Run = Callable[[list[Problem]], list[dict[str, np.ndarray]]]


@pytest.fixture(scope="session", params=ISAS, ids=str)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    isa: Isa = request.param
    if reason := why_it_cannot_run(isa):
        pytest.skip(reason)
    command = compile_driver(isa, tmp_path_factory.mktemp(isa.name))

    def solve(problems: list[Problem]) -> list[dict[str, np.ndarray]]:
        sent = b"".join(problem.encoded() for problem in problems)
        done = subprocess.run(command, input=sent, capture_output=True, check=True)
        answer = BytesIO(done.stdout)
        results = [problem.decoded(answer) for problem in problems]
        assert answer.read() == b""
        return results

    return solve
