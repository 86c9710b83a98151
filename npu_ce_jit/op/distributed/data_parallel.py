# SPDX-License-Identifier: Apache-2.0
"""Refuses DTensors whose gradients fully_shard would reduce a second time.

A loss of DTensors is that of all ranks' rows, and each rank's rows get their share of its gradient. fully_shard
averages the gradients of parameters over the ranks, as if each had a loss of its own: they come out too small, by a
factor of the number of ranks, unless it is told to sum. A parameter that fully_shard has sharded and that is used as a
DTensor is not reduced again.

DistributedDataParallel averages too, but nothing shows that it is there. fully_shard is found by a table of modules
that is private to torch.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from npu_ce_jit.torch_compat import SET_GRADIENT_DIVIDE_FACTOR, averaging_groups

_OF_FULLY_SHARD = "torch.distributed.fsdp._fully_shard"
_PARAMETERS = ("linear_weight", "linear_bias")
_ADD_UP = SET_GRADIENT_DIVIDE_FACTOR and (
    f". For the mean over all ranks' rows, call {SET_GRADIENT_DIVIDE_FACTOR}(1.0) on every FSDPModule, which then adds "
    "up (with gloo, set_force_sum_reduction_for_comms(True) as well)"
)


def require_reduced_once(**tensors: DTensor) -> None:
    """Raises RuntimeError where fully_shard averages over a dimension of their mesh that shards one of them."""
    mesh = next(iter(tensors.values())).device_mesh
    shared = [any(not tensor.placements[dim].is_replicate() for tensor in tensors.values()) for dim in range(mesh.ndim)]
    times = prod(mesh.size(dim) for dim in range(mesh.ndim) if shared[dim] and is_averaged_over(mesh, dim))
    if times == 1:
        return
    got = ", ".join(f"{name} {list(tensor.placements)}" for name, tensor in tensors.items())
    whole = _whole([name for name in tensors if name in _PARAMETERS], mesh)
    raise RuntimeError(
        "expected DTensors on ranks over which no gradient is reduced again, got ranks over which fully_shard averages "
        f"({got}): input's gradient, a share of all ranks' loss, would come out as 1/{times} of itself. Pass plain "
        f"tensors with this rank's own rows{whole and f'; for the head, {whole}'}{_ADD_UP or ''}"
    )


def advice_for_mixed(tensors: Mapping[str, object]) -> str:
    """What to call where some of these are DTensors and others are not."""
    shared = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    mesh = next(iter(shared.values())).device_mesh
    apart = [name for name in _PARAMETERS if name in shared]
    if apart and any(is_averaged_over(mesh, dim) for dim in range(mesh.ndim)):
        return f"where fully_shard has taken the head apart, {_whole(apart, mesh)}"
    plain = ", ".join(name for name, tensor in tensors.items() if tensor is not None and name not in shared)
    return (
        f"make DTensors of {plain} too: torch.distributed.tensor.distribute_tensor(tensor, mesh, placements) where all "
        "ranks have the same, DTensor.from_local(tensor, mesh, [Shard(0)]) where each has its own rows; or pass plain "
        f"tensors only, {', '.join(f'{name}.full_tensor()' for name in shared)}"
    )


def is_averaged_over(mesh: DeviceMesh, dim: int) -> bool:
    """Whether fully_shard averages gradients over ranks of this dimension."""
    if _OF_FULLY_SHARD not in sys.modules or mesh.size(dim) == 1:
        return False
    ranks = set(dist.get_process_group_ranks(mesh.get_group(dim)))
    if all(len(ranks & averaged) == 1 for averaged in _averaged()):
        return False
    gc.collect()  # a model that nobody has any more may still be in the table
    return any(len(ranks & averaged) > 1 for averaged in _averaged())


def _averaged() -> Iterator[set[int]]:
    """The ranks over which each module averages."""
    from torch.distributed._composable_state import _module_state_mapping

    for state in list(_module_state_mapping.values()):
        for group in averaging_groups(state()):
            yield set(dist.get_process_group_ranks(group))


def _whole(parameters: Sequence[str], mesh: DeviceMesh) -> str:
    """Advice on how to gather them, with gradients that are averaged as those of other parameters are."""
    average = "[Partial('avg')]" + (f" * {mesh.ndim}" if mesh.ndim > 1 else "")
    calls = " and ".join(f"{name}.full_tensor(grad_placements={average})" for name in parameters)
    return calls and (
        "call the loss in the forward of a module that is sharded together with its head, or call unshard() on the "
        f"head before, or pass {calls}"
    )
