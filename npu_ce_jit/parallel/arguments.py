# SPDX-License-Identifier: Apache-2.0
"""What every loss over ranks checks and looks up before its first collective."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.op import checks
from npu_ce_jit.op.operators import checked_terms
from npu_ce_jit.op.schema import LossTerms


def require_plain(**tensors: object) -> None:
    for name, tensor in tensors.items():
        checks.require_tensor(name, tensor)
        dtensors = sys.modules.get("torch.distributed.tensor")  # where nobody imported it, nobody has one
        if dtensors is not None and isinstance(tensor, dtensors.DTensor):
            raise RuntimeError(
                f"expected {name} to be this rank's own part, a plain tensor, got a DTensor; pass {name}.to_local(), "
                "or DTensors alone to the function of npu_ce_jit itself"
            )


def checked_loss_terms(
    input: Tensor,
    weight: Tensor | None,
    loss_dtype: torch.dtype | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
) -> LossTerms:
    """Of tensors whose shapes have been checked."""
    ignore_index, label_smoothing, z_loss, softcap, logit_scale = plain_numbers(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
    )
    checks.check_loss_dtype(input, loss_dtype)
    checks.check_weight_has_no_gradient(weight)
    # Past the cache, which Dynamo warns of.
    return checked_terms.__wrapped__(reduction, ignore_index, label_smoothing, "z_loss", z_loss, softcap, logit_scale)


def required_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if group is not None:
        return group
    if not dist.is_initialized():
        raise RuntimeError("expected a process group, got none: call torch.distributed.init_process_group first")
    return dist.distributed_c10d._get_default_group()


def no_derivative(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"expected no derivative of the gradient of {name}, got a request for one (create_graph=True); "
        f"npu_ce_jit.{name.removeprefix('vocab_parallel_')} is differentiable to any order"
    )
