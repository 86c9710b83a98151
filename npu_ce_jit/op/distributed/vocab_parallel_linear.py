# SPDX-License-Identifier: Apache-2.0
"""`op/linear/chunks.py` where ranks share the classes of linear_weight, the rows of input, or both.

A chunk has the logits of this rank's classes; the two collectives of `vocab_parallel` combine its rows over the ranks.
The matrix products need no collective in a chunk: the gradient of input is a sum over the ranks that share the classes,
the gradients of the layer are sums over the ranks that share the rows, and each is all-reduced once, after the last
chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.op.distributed import vocab_parallel
from npu_ce_jit.op.distributed.targets import VocabRange
from npu_ce_jit.op.distributed.vocab_parallel import Group, all_reduce
from npu_ce_jit.op.linear.chunks import LinearInputs, OneProcess, Results, losses_and_gradients, problem_of
from npu_ce_jit.op.rows import OutputGrads, weight_of_targets
from npu_ce_jit.op.schema import LinearOutputs, accumulation_dtype
from npu_ce_jit.op.torch_private import resolve_group


class _ManyRanks(OneProcess):
    """`problem` has this rank's rows, and this rank's classes and their weights."""

    def __init__(
        self, problem: LinearInputs, class_groups: Sequence[Group], row_groups: Sequence[Group], shard: VocabRange
    ) -> None:
        super().__init__(problem)
        self._class_groups, self._row_groups, self._shard = class_groups, row_groups, shard
        if class_groups:
            self.classes = int(shard.classes)
            # The mean, not this rank's own number, so that all ranks make the same number of chunks.
            self.classes_of_a_rank = max(1, self.classes // prod(map(_ranks, class_groups)))

    def denominators(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        not_ignored = target != self.terms.ignore_index
        count = not_ignored.sum().to(dtype)
        total = count
        if self.weight is not None:
            local = torch.where(not_ignored, target.long() - self._shard.first, -1)
            own = weight_of_targets(local, self.weight, -1).sum() if len(self.weight) else 0 * count
            total = all_reduce(own.to(dtype), "sum", self._class_groups)
        return all_reduce(torch.stack((total, count)), "sum", self._row_groups)

    def results(
        self, logits: Tensor, target: Tensor, outputs: int, gradients: OutputGrads | None, denominators: Tensor
    ) -> Results:
        if not self._class_groups:
            return super().results(logits, target, outputs, gradients, denominators)
        of_all = (self._class_groups, self._shard)
        rows, _ = vocab_parallel.forward(logits, target, self.weight, self.ce_terms, outputs, *of_all)
        if gradients is not None:
            vocab_parallel.backward(
                gradients, logits, target, self.weight, rows.row_stats, rows.target_weight, rows.entropy,
                denominators, self.terms, *of_all, in_place=True,
            )  # fmt: skip
        lse = rows.row_stats.sum(0)
        return Results(rows.ce, lse, *(lse if values is None else values for values in (rows.argmax, rows.entropy)))

    def total(self, losses: Tensor) -> Tensor:
        return all_reduce(losses.sum(), "sum", self._row_groups)


def linear(
    problem: LinearInputs,
    class_groups: Sequence[Group],
    row_groups: Sequence[Group],
    shard: VocabRange,
    chunk_rows: int,
    aspect_ratio: int,
    output_mask: list[bool],
) -> LinearOutputs:
    """`_linear`'s outputs, with the losses in the accumulation dtype."""
    ranks = _ManyRanks(problem, class_groups, row_groups, shard)
    results = losses_and_gradients(problem, ranks, chunk_rows, aspect_ratio, output_mask)
    losses, gradients = results[:5], results[5:]
    summed_over = (class_groups, row_groups, row_groups)
    return *losses, *(  # type: ignore[return-value]
        all_reduce(gradient, "sum", groups) if asked else gradient
        for gradient, groups, asked in zip(gradients, summed_over, output_mask, strict=True)
    )


def linear_of_group(*arguments: Any) -> LinearOutputs:
    """`_linear` where the ranks of a group share the classes."""
    loss_dtype, chunk_rows, aspect_ratio, group_name, output_mask = arguments[16:]
    group, problem = resolve_group(group_name), problem_of(*arguments[:16])
    shard = _shard_of(problem, group)
    loss, z_loss, *others = linear(problem, (group,), (), shard, chunk_rows, aspect_ratio, output_mask)
    return loss.to(loss_dtype), z_loss.to(loss_dtype), *others  # type: ignore[return-value]


def _shard_of(problem: LinearInputs, group: dist.ProcessGroup) -> VocabRange:
    """This rank's range of classes. One small collective, for which the host waits."""
    classes = len(problem.linear_weight)
    no_rows = problem.input.new_empty(0, dtype=accumulation_dtype(problem.input.dtype))
    weight_sum = no_rows.new_full((), classes) if problem.weight is None else problem.weight.sum()
    _, shard = vocab_parallel.max_and_shard(no_rows, classes, weight_sum, group)
    return shard._replace(first=int(shard.first), classes=int(shard.classes))


def _ranks(group: Group) -> int:
    return group.size() if isinstance(group, dist.ProcessGroup) else group[0].size(group[1])
