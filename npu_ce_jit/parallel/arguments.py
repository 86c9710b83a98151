# SPDX-License-Identifier: Apache-2.0
"""What every loss over ranks checks before its collectives, and how ranks tell each other what they have found."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import FakeTensor

from npu_ce_jit.api.linear_cross_entropy import flat_rows
from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.op import checks, row_checks
from npu_ce_jit.op.distributed.targets import VocabRange
from npu_ce_jit.op.distributed.vocab_parallel import all_reduce
from npu_ce_jit.op.layer_checks import check_linear
from npu_ce_jit.op.operators import checked_terms
from npu_ce_jit.op.schema import LossTerms, accumulation_dtype


def require_plain(**tensors: object) -> None:
    for name, tensor in tensors.items():
        checks.require_tensor(name, tensor)
        dtensors = sys.modules.get("torch.distributed.tensor")  # not imported: there are no DTensors
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
    """The options of a loss as LossTerms, checked. The shapes of its tensors have been checked before."""
    ignore_index, label_smoothing, z_loss, softcap, logit_scale = plain_numbers(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
    )
    checks.check_loss_dtype(input, loss_dtype)
    checks.check_weight_has_no_gradient(weight)
    # `__wrapped__` bypasses the lru_cache, about which Dynamo warns.
    return checked_terms.__wrapped__(reduction, ignore_index, label_smoothing, "z_loss", z_loss, softcap, logit_scale)


class Call(Protocol):
    """A call whose arguments this rank has accepted."""

    @property
    def input(self) -> Tensor:
        """The logits `[N, C_rank]`, or what they are made of."""

    @property
    def classes(self) -> int:
        """The number of this rank's classes."""

    @property
    def target(self) -> Tensor:
        """`[N]`"""

    @property
    def weight(self) -> Tensor | None:
        """The classes' weights, of this rank's or of all."""

    @property
    def shared(self) -> dict[str, object]:
        """By name, what else must be the same on every rank."""


class LinearCall(NamedTuple):
    """A call on a linear layer."""

    input: Tensor
    classes: int
    target: Tensor
    weight: Tensor | None
    terms: LossTerms
    options: dict[str, object]

    @classmethod
    def checked(
        cls,
        input: Tensor,
        local_linear_weight: Tensor,
        target: Tensor,
        local_linear_bias: Tensor | None,
        weight: Tensor | None,
        terms: LossTerms,
        options: dict[str, object],
    ) -> LinearCall:
        rows, classes = flat_rows(input, target)
        check_linear(rows, local_linear_weight, local_linear_bias, classes, None, may_be_empty=True)
        row_checks.check_weight_of_ranks(weight, len(local_linear_weight))
        return cls(input, len(local_linear_weight), classes, weight, terms, options)

    @property
    def shared(self) -> dict[str, object]:
        return {"in_features": self.input.shape[-1], **self.options}


AnyCall = TypeVar("AnyCall", bound=Call)


def agreed(
    name: str, local_logits: object, group: dist.ProcessGroup, check: Callable[[], AnyCall]
) -> tuple[AnyCall, VocabRange | None]:
    """The call that `check` makes of this rank's arguments, and this rank's range of classes.

    On a CPU in eager mode, ranks tell each other in one collective of four numbers whether they have accepted their
    arguments, and a digest of what must be the same. So an error on one rank is raised on all ranks at once, and none
    waits for a rank that has left. Elsewhere that would stall the host: nothing is exchanged, and the range is None.
    """
    if not _ranks_tell(local_logits, group):
        return check(), None
    call: AnyCall | None = None
    own_error: Exception | None = None
    try:
        call = check()
    except Exception as error:  # noqa: BLE001  raised again once the other ranks know
        own_error = error
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    # -inf outside the rank's own row: the max never takes it.
    numbers = torch.full((ranks, 4), -torch.inf, dtype=torch.float64, device="cpu")
    numbers[rank] = 0 if call is None else _told(name, call)
    accepted, sizes, weight_sizes, weight_sums = all_reduce(numbers, "max", (group,)).unbind(1)
    sizes = sizes.long()
    total = sizes.sum()
    if call is None or bool((accepted != accepted[0]).any()):
        raise _refusal(name, call, own_error, group) from own_error
    # A weight of a wrong length on one rank is an error on all ranks, so that none waits for it.
    wrong = (weight_sizes != sizes) & (weight_sizes != total) & (weight_sizes >= 0)
    if bool(wrong.any()):
        where = int(wrong.nonzero()[0])
        raise RuntimeError(
            f"expected weight of shape [{int(sizes[where])}], one for each class of the rank, or [{int(total)}], one "
            f"for each class of all, got [{int(weight_sizes[where])}] on rank {where} of the group"
        )
    is_whole = weight_sizes == total
    weight_sums = weight_sums.to(accumulation_dtype(call.input.dtype))  # as max_and_shard sums them, for the same bits
    weight_sum = weight_sums[is_whole.long().argmax()] if bool(is_whole.any()) else weight_sums.sum()
    first = sizes[:rank].sum()
    return call, VocabRange(first, total, weight_sum)


class _Report(NamedTuple):
    """What one rank tells the others where a rank has an error, or their calls differ."""

    error: str | None
    shared: dict[str, str]


def _ranks_tell(local_logits: object, group: dist.ProcessGroup) -> bool:
    if torch.compiler.is_compiling() or isinstance(local_logits, FakeTensor):
        return False
    backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
    # The backends are known even on a rank whose logits are no tensor, or are on another device by mistake.
    only_for_cpu = set(backends.values()) == {"gloo"}
    is_on_cpu = isinstance(local_logits, Tensor) and local_logits.device.type == "cpu"
    return backends.get("cpu") == "gloo" and (only_for_cpu or is_on_cpu)


def _told(name: str, call: Call) -> Tensor:
    """A digest that is never 0, this rank's number of classes, and its weight's length (-1 for none) and sum."""
    classes, weight = call.classes, call.weight
    digest = 1 + zlib.crc32(repr(_shared(name, call)).encode())
    of_weight = (-1, classes) if weight is None else (len(weight), float(weight.sum()))
    return torch.tensor((digest, classes, *of_weight), dtype=torch.float64, device="cpu")


def _shared(name: str, call: Call) -> dict[str, str]:
    found: dict[str, object] = {
        "function": name,
        "dtype": str(call.input.dtype).removeprefix("torch."),
        "number of rows": len(call.target),
        "sum of targets": int(call.target.sum()),
        "weight": "none" if call.weight is None else "given",
        **call.shared,
    }
    return {key: str(value) for key, value in found.items()}


def _refusal(name: str, call: Call | None, own_error: Exception | None, group: dist.ProcessGroup) -> Exception:
    """This rank's own error, or one that says what the others have found. Every rank calls it: it has a collective."""
    own = _Report(None, _shared(name, call)) if call else _Report(f"{type(own_error).__name__}: {own_error}", {})
    of_ranks: list[_Report] = [own] * dist.get_world_size(group)
    dist.all_gather_object(of_ranks, own, group)
    if own_error is not None:
        return own_error
    refused = [f"rank {rank} of the group: {report.error}" for rank, report in enumerate(of_ranks) if report.error]
    if refused:
        return RuntimeError(
            f"expected arguments of {name} that every rank accepts, got an error on {len(refused)} of "
            f"{len(of_ranks)} ranks; {'; '.join(refused)}"
        )
    differing = [
        f"{key} " + ", ".join(f"{report.shared.get(key)} (rank {rank})" for rank, report in enumerate(of_ranks))
        for key in own.shared
        if len({report.shared.get(key) for report in of_ranks}) > 1
    ]
    return RuntimeError(f"expected the same call of {name} on every rank, got {'; '.join(differing)}")


def required_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if group is not None:
        return group
    if not dist.is_initialized():
        raise RuntimeError("expected a process group, got none: call torch.distributed.init_process_group first")
    return dist.distributed_c10d._get_default_group()
