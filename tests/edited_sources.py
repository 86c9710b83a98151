# SPDX-License-Identifier: Apache-2.0
"""A copy of the sources in which the loss is multiplied by a macro, on the CPU and on an NPU, to tell kernels apart."""

from __future__ import annotations

import shutil
from pathlib import Path

from npu_ce_jit.jit.sources import Sources

_EDITS = {
    "csrc/cpu/forward.h": ("ce = (1 - problem_.label_smoothing)", "ce = SCALE * (1 - problem_.label_smoothing)"),
    "ascendc/ce_row_finish.h": ("Muls(ce, ce, smoothing - 1, count_)", "Muls(ce, ce, SCALE * (smoothing - 1), count_)"),
}


def copy_with_scale(to: Path) -> Path:
    """The macro is SCALE; without one it is 1."""
    root_dir = Sources.installed().root_dir
    for folder in ("csrc", "ascendc"):
        shutil.copytree(root_dir / folder, to / folder)
    for name, (old, new) in _EDITS.items():
        text = (to / name).read_text("utf-8")
        assert text.count(old) == 1, name
        (to / name).write_text("#ifndef SCALE\n#define SCALE 1\n#endif\n" + text.replace(old, new), "utf-8")
    return to
