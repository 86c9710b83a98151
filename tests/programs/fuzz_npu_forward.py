# SPDX-License-Identifier: Apache-2.0
"""Solves random problems with the forward kernels: python tests/programs/fuzz_npu_forward.py [cases] [seed]."""

from __future__ import annotations

import random
import sys

import checkout_path  # noqa: F401  before what the tests share

# isort: split
import torch
from npu_forward_check import check
from npu_kernels import Arguments
from torch import Tensor

OUTPUTS = ("z_loss", "log_prob", "lse", "argmax", "entropy")


def any_case(chance: random.Random) -> tuple[Tensor, Tensor, Arguments, int, int]:
    """Logits, target, arguments, number of cores, row stride."""
    torch.manual_seed(chance.getrandbits(31))
    classes = round(10 ** chance.uniform(0, 3.8))
    rows = min(round(10 ** chance.uniform(0, 2.5)), max(1, 12000 // classes))
    dtype = chance.choice((torch.float32, torch.float16, torch.bfloat16))
    logits = (torch.randn(rows, classes) * chance.choice((0.1, 3, 30)) + chance.choice((0, 0, 50))).to(dtype)
    if chance.random() < 0.3:  # the first class stays unmasked, so that no row is empty
        logits[:, 1:][torch.rand(rows, classes - 1) < 0.5] = -torch.inf
    target = torch.randint(classes, (rows,), dtype=chance.choice((torch.int32, torch.int64)))
    target[torch.rand(rows) < chance.choice((0, 0.3))] = -100
    masked = bool(logits.isinf().any())
    arguments = Arguments(
        weight=torch.rand(classes) + 0.1 if chance.random() < 0.3 else None,
        reduction=chance.choice(("none", "mean", "sum")),
        label_smoothing=0.0 if masked else chance.choice((0.0, 0.0, 0.1)),
        z_loss=chance.choice((0.0, 0.01)),
        softcap=chance.choice((0.0, 0.0, 30.0)),
        logit_scale=chance.choice((1.0, 0.5)),
        outputs=tuple(name for name in OUTPUTS if chance.random() < 0.3),
        loss_dtype=chance.choice((torch.float32, dtype)),
    )
    return logits, target, arguments, chance.choice((1, 3, 40, 48)), classes + chance.choice((0, 0, 1, 17))


def main() -> None:
    cases, seed = (int(argument) for argument in [*sys.argv[1:], "10000", "0"][:2])
    chance = random.Random(seed)
    for case in range(cases):
        arguments = any_case(chance)
        try:
            check(*arguments)
        except AssertionError:
            logits, target, *rest = arguments
            sys.stderr.write(f"case {case}: {tuple(logits.shape)} {logits.dtype} {target.dtype} {rest}\n")
            raise
    sys.stdout.write(f"{cases} cases, none wrong\n")


if __name__ == "__main__":
    main()
