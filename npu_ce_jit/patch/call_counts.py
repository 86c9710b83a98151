# SPDX-License-Identifier: Apache-2.0
"""Counts the calls of a redirected function: those that ours answered, and those that passed through, by reason."""

from __future__ import annotations

import logging

import torch

from npu_ce_jit.api.cross_entropy import OPS

FUNCTION, OPERATOR = "torch.nn.functional.cross_entropy", "torch.ops.npu.npu_cross_entropy_loss"


class CallCounts:
    """The counts of one function, in eager mode: compiled code counts nothing. No lock: threads may lose a call."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ours = 0
        self.passed_through: dict[str, int] = {}

    def count_ours(self) -> None:
        if not torch.compiler.is_compiling():
            self.ours += 1

    def count_passed_through(self, reason: str) -> None:
        if torch.compiler.is_compiling():
            return
        if reason not in self.passed_through:
            # Logged once for each reason: a training loop has it at every step.
            logging.getLogger("npu_ce_jit").debug("a call of %s passed through: %s", self.name, reason)
        self.passed_through[reason] = self.passed_through.get(reason, 0) + 1


# Kept in torch's namespace of our operators, as the switch is, so that a second import goes on counting.
_KEPT = "_call_counts"
_counts: dict[str, CallCounts] = vars(OPS).get(_KEPT) or {name: CallCounts(name) for name in (FUNCTION, OPERATOR)}
setattr(OPS, _KEPT, _counts)
of_function, of_operator = _counts[FUNCTION], _counts[OPERATOR]
