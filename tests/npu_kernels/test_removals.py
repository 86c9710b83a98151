# SPDX-License-Identifier: Apache-2.0
"""tests/programs/remove_ce_synchronisation.py, which runs for minutes, removes every call, and notices it."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from remove_ce_synchronisation import add_switches_to_all, backward_case, sources
from remove_synchronisation import compile_switched, judge_calls

CALLS = (
    "VectorBarrier();", "PipeBarrier<", "Order<HardEvent", "SetFlag<", "WaitFlag<", "AllocTensor<", "EnQue(", "DeQue<",
    "FreeTensor(", "FillTail(", "FillTails(",
)  # fmt: skip


def test_every_call_is_removed(tmp_path: Path) -> None:
    removals = add_switches_to_all(tmp_path)
    text = "\n".join(re.sub(r"//.*", "", path.read_text()) for path in sources())
    text = re.sub(r"void \w+\(", "", text)  # the definitions of FillTail and the like
    for call in CALLS:
        assert sum(call in removal.text for removal in removals) == text.count(call) > 0


def test_one_of_every_kind_is_noticed(tmp_path: Path) -> None:
    """Uses the sums over classes, because their kernel is small."""
    removals = add_switches_to_all(tmp_path)
    library = compile_switched(tmp_path, ["backward/backward.asc"])
    calls = [i for i, removal in enumerate(removals) if removal.file in {"backward/class_sums.h", "common/lanes.h"}]
    case = backward_case(3, 3001, torch.bfloat16, ("loss", "log_prob"), weight=True, label_smoothing=0.1)
    noticed = [removals[i].text for i, one in zip(calls, judge_calls(library, [case], calls), strict=True)
               if not one.survived]  # fmt: skip
    for call in set(CALLS) - {"Order<HardEvent", "FillTails("}:  # these are SetFlag and WaitFlag, and FillTail by rows
        assert any(call in text for text in noticed), call
