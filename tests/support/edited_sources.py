# SPDX-License-Identifier: Apache-2.0
"""A copy of the sources that multiplies the loss by a macro, on CPU and NPU, to tell whose kernels ran."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

import npu_ce_jit
from npu_ce_jit.jit.sources import Sources

X, TARGET = torch.randn(5, 70, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 69, 3, -100, 7])
RIGHT = F.cross_entropy(X, TARGET)

_EDITS = {
    "csrc/cpu/kernels/forward.h": (
        "hard_(1 - problem.label_smoothing)",
        "hard_(SCALE * (1 - problem.label_smoothing))",
    ),
    "ascendc/forward/row_finish.h": (
        "Muls(ce, ce, smoothing - 1, count_)",
        "Muls(ce, ce, SCALE * (smoothing - 1), count_)",
    ),
}


def scale(device: Literal["cpu", "npu"]) -> float:
    """The factor by which the kernels in use multiply the loss."""
    return round((npu_ce_jit.cross_entropy(X.to(device), TARGET.to(device)).cpu() / RIGHT).item(), 3)


def doubling(to: Path, device: Literal["cpu", "npu"]) -> Callable[..., Any]:
    """Returns a function that rebuilds the kernels with a factor of 2 on the loss."""
    sources = _copy(to)
    return lambda **options: npu_ce_jit.rebuild({"SCALE": 2}, sources, device=device, **options)


def _copy(to: Path) -> Path:
    root_dir = Sources.installed().root_dir
    for folder in ("csrc", "ascendc"):
        shutil.copytree(root_dir / folder, to / folder)
    for name, (old, new) in _EDITS.items():
        text = (to / name).read_text("utf-8")
        assert text.count(old) == 1, name
        (to / name).write_text("#ifndef SCALE\n#define SCALE 1\n#endif\n" + text.replace(old, new), "utf-8")
    replaced = 0
    for source in (to / "ascendc").glob("*ward/*.asc"):
        # Builds only float32's kernels, under every dtype's name: a third of the compile time; only float32 is called.
        text, count = re.subn(r"<(half|bfloat16_t)>>\(", "<float>>(", source.read_text("utf-8"))
        source.write_text(text, "utf-8")
        replaced += count
    assert replaced
    return to
