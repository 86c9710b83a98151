# SPDX-License-Identifier: Apache-2.0
"""What the NPU kernels' text must be for releases of the compiler that read more of it than C++ asks for."""

from __future__ import annotations

import re

from npu_kernels import ROOT

UNITS = sorted((ROOT / "ascendc").glob("*ward/*.asc"))
KERNELS = 21  # forward and backward in two layouts, log_prob and sums: for three dtypes each; merge and two reductions


def test_every_kernel_is_spelled_out() -> None:
    """A name that a macro pastes has no place in the source, by which CANN 8.5.0 looks up which cores it is for."""
    text = "\n".join(path.read_text() for path in UNITS)
    defined = re.findall(r"^extern \"C\" __global__ NPU_CE_VECTOR __aicore__ void (\w+)\(", text, re.MULTILINE)
    assert len(set(defined)) == len(defined) == text.count("__global__") == KERNELS
    assert sorted(re.findall(r"(\w+)<<<", text)) == sorted(defined)
    assert "##" not in text
