# SPDX-License-Identifier: Apache-2.0
"""bf16 gradients: the worst element against float64, over ordinary rows and confident ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from bars import Verdict

import npu_ce_jit

_MOST = 0.005  # bf16 itself rounds by 0.0039


def worst_elements() -> dict[str, float]:
    torch.manual_seed(0)
    confident = torch.zeros(256, 2, dtype=torch.bfloat16)
    confident[:, 1] = -torch.linspace(0, 9.2, 256)
    kinds = {"ordinary rows": torch.randn(64, 32000).mul(3).bfloat16(), "confident rows": confident}
    return {kind: _worst_element(x) for kind, x in kinds.items()}


def _worst_element(x: torch.Tensor) -> float:
    target = torch.randint(x.shape[1], (x.shape[0],))
    target[: len(target) // 2] = 0
    leaf, true = x.clone().requires_grad_(), x.double().requires_grad_()
    npu_ce_jit.cross_entropy(leaf, target, reduction="sum").backward()
    F.cross_entropy(true, target, reduction="sum").backward()
    normal = true.grad.abs() >= torch.finfo(torch.bfloat16).smallest_normal
    return float(((leaf.grad.double() - true.grad) / true.grad)[normal].abs().max())


def verdicts(accuracy: dict[str, float]) -> list[Verdict]:
    return [
        Verdict(
            f"cross_entropy: worst element of a bfloat16 gradient, {kind}",
            f"<= {_MOST:.1%}",
            f"{error:.2%}",
            error <= _MOST,
        )
        for kind, error in accuracy.items()
    ]
