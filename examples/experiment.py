#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Edits a kernel and runs it, in one process: label smoothing that is spread over the other classes only.

It edits the loss only; the gradient is in csrc/cpu/kernels/backward.h and row_gradient.h.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

import npu_ce_jit
from npu_ce_jit import cross_entropy

INSTALLED = """\
        ce -= problem_.label_smoothing / static_cast<double>(problem_.classes) *
              (state.weighted - weights_.total() * (row_max + log_sum));
"""
EDITED = """\
        ce -= problem_.label_smoothing / static_cast<double>(problem_.classes - 1) *
              (state.weighted - weights_.total() * (row_max + log_sum) - log_prob);
"""


def edit(file: Path) -> None:
    text = file.read_text("utf-8")
    assert text.count(INSTALLED) == 1, f"{file} is not what this example was written for"
    file.write_text(text.replace(INSTALLED, EDITED), "utf-8")


def main() -> None:
    x, target = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])
    print("installed", cross_entropy(x, target, label_smoothing=0.1).item())
    with tempfile.TemporaryDirectory() as copy:
        for folder in ("csrc", "ascendc"):
            shutil.copytree(Path(npu_ce_jit.info()["sources"], folder), Path(copy, folder))
        edit(Path(copy, "csrc/cpu/kernels/forward.h"))
        # The check knows the installed formula only.
        print(npu_ce_jit.rebuild(sources=copy, device="cpu", check=False))
    print("edited", cross_entropy(x, target, label_smoothing=0.1).item())
    npu_ce_jit.rebuild(device="cpu")
    print("installed", cross_entropy(x, target, label_smoothing=0.1).item())


if __name__ == "__main__":
    main()
