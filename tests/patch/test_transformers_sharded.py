# SPDX-License-Identifier: Apache-2.0
"""A patched model of transformers on two ranks: its gradients are those of one process with both ranks' rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from frameworks import batch, tiny
from probes import needs_frameworks
from ranks import run_on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import npu_ce_jit
from npu_ce_jit.patch.deferred_logits import DeferredLogits

pytestmark = needs_frameworks("transformers")
ROWS = 4  # of both ranks


def step(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The logits, read after the loss, and the gradients."""
    outputs = model(**inputs, num_items_in_batch=20)
    assert isinstance(outputs.logits, DeferredLogits)
    logits = outputs.logits.detach()
    outputs.loss.backward()
    found = [p.grad for p in model.parameters()]
    return [logits, *(g.full_tensor() if isinstance(g, DTensor) else g for g in found)]


def wrapped(model: Any, how: str) -> Any:
    if how == "DDP":
        return DistributedDataParallel(model)
    if how == "DDP, unused":
        return DistributedDataParallel(model, find_unused_parameters=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if how == "FSDP2, head":
        for module in (*model.model.layers, model.lm_head):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def check(rank: int, how: str) -> None:
    inputs = batch(ROWS)
    alone = tiny()
    outputs = alone(**inputs, num_items_in_batch=20)
    outputs.loss.backward()
    logits = outputs.logits.detach().chunk(dist.get_world_size())[rank]
    expected = [logits, *(p.grad / dist.get_world_size() for p in alone.parameters())]
    model = tiny()
    patch = npu_ce_jit.patch.transformers(model)
    found = step(wrapped(model, how), {name: t.chunk(dist.get_world_size())[rank] for name, t in inputs.items()})
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
    assert patch.is_in_effect(), repr(patch)
    patch.undo()


@pytest.mark.parametrize("how", ["DDP", "DDP, unused", "FSDP2", "FSDP2, head"])
def test_two_ranks(how: str) -> None:
    run_on_ranks(2, check, how)
