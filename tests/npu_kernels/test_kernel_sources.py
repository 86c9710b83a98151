# SPDX-License-Identifier: Apache-2.0
"""Rules for the text of the NPU kernels, from releases of the compiler that need more than C++ does."""

from __future__ import annotations

import re

from npu_kernels import ROOT

UNITS = sorted((ROOT / "ascendc").glob("*ward/*.asc"))
KERNELS = 21  # forward and backward in two layouts, log_prob and sums, each for three dtypes; merge, and two reductions


def test_every_kernel_is_spelled_out() -> None:
    """CANN 8.5.0 finds a kernel's kind of cores by the place of its name; a name from a macro has no place."""
    text = "\n".join(path.read_text() for path in UNITS)
    defined = re.findall(r"^extern \"C\" __global__ NPU_CE_VECTOR __aicore__ void (\w+)\(", text, re.MULTILINE)
    assert len(set(defined)) == len(defined) == text.count("__global__") == KERNELS
    assert sorted(re.findall(r"(\w+)<<<", text)) == sorted(defined)
    assert "##" not in text
