# SPDX-License-Identifier: Apache-2.0
"""docs/drop-in.md: its code runs unchanged, and the calls that it says are ours are computed by ours."""

from __future__ import annotations

import torch.nn.functional as F
from pages import code_of, needs_the_pages
from probes import needs_the_library
from switch_tools import runs_ours

pytestmark = [needs_the_library, needs_the_pages]
BLOCKS = code_of("drop-in.md")


def test_the_blocks_run_one_after_the_other() -> None:
    code, names = F.cross_entropy.__code__, {}
    for block in BLOCKS:
        exec(block, names)
    assert F.cross_entropy.__code__ is code


def test_each_line_is_computed_by_whom_it_says() -> None:
    names: dict[str, object] = {}
    compared = 0
    for line in "\n".join(BLOCKS[:2]).splitlines():
        body, _, said = line.strip().partition("  # ")
        if "with npu_ce_jit" in body:
            exec("block = npu_ce_jit.installed(); block.__enter__()", names)
            continue
        if said.startswith("torch's; "):
            exec("block.__exit__(None, None, None)", names)
        _, ours = runs_ours(lambda body=body: exec(body, names))
        if "(logits, target)" in body:
            assert ours == said.startswith("ours"), line
            compared += 1
    assert compared == 4
