# SPDX-License-Identifier: Apache-2.0
"""The runtime of each generation has the functions of its release."""

from __future__ import annotations

import subprocess

from virtual_cann.layouts import LAYOUTS
from virtual_cann.prepare import prepare


def functions_of_the_runtime(generation: float) -> set[str]:
    listed = subprocess.run(["nm", "-D", "--defined-only", prepare(generation).library], capture_output=True, text=True)
    return {line.split()[-1] for line in listed.stdout.splitlines()}


def test_a_generation_has_no_function_that_its_release_lacks():
    every = functions_of_the_runtime(9.1)
    missing = every - functions_of_the_runtime(8.3)
    assert {"aclrtGetStreamResLimit", "aclrtGetResInCurrentThread"} <= missing
    assert missing == set(LAYOUTS[8.3].lacks)
    assert {"rtGetTaskIdAndStreamID", "aclmdlRICaptureBegin"} <= functions_of_the_runtime(8.3)
    assert functions_of_the_runtime(8.5) == every
