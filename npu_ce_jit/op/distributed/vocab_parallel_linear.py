# SPDX-License-Identifier: Apache-2.0
"""`linear_chunks` where ranks share the classes of linear_weight, the rows of input, or both.

Each chunk's logits are this rank's classes; its rows meet in the two collectives of `vocab_shard`. The products need
none: the gradient of input is a sum over the ranks that share the classes, those of the layer over those that share
the rows, and each is added up once, after the last chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.op.distributed import vocab_parallel
from npu_ce_jit.op.distributed.vocab_parallel import Group, Shard, all_reduce
from npu_ce_jit.op.linear.chunks import OneProcess, Problem, loss_and_gradients
from npu_ce_jit.op.rows import Gradients, weight_of_targets
from npu_ce_jit.op.schema import accumulation_dtype


class _ManyRanks(OneProcess):
    """`problem` has this rank's rows, and this rank's classes and their weights."""

    def __init__(
        self, problem: Problem, class_groups: Sequence[Group], row_groups: Sequence[Group], shard: Shard
    ) -> None:
        super().__init__(problem)
        self._class_groups, self._row_groups, self._shard = class_groups, row_groups, shard
        if class_groups:
            self.classes = int(shard.classes)
            # The same on every rank, so that all have as many chunks.
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

    def loss(
        self, logits: Tensor, target: Tensor, grad_loss: Tensor | None, denominators: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self._class_groups:
            return super().loss(logits, target, grad_loss, denominators)
        of_all = (self._class_groups, self._shard)
        rows, _ = vocab_parallel.forward(logits, target, self.weight, self.ce_terms, 0, *of_all)
        if grad_loss is not None:
            vocab_parallel.backward(
                Gradients(grad_loss, None, None, None, None), logits, target, self.weight, rows.row_stats,
                rows.target_weight, None, denominators, self.terms, *of_all, in_place=True,
            )  # fmt: skip
        return rows.ce, rows.row_stats.sum(0)

    def total(self, losses: Tensor) -> Tensor:
        return all_reduce(losses.sum(), "sum", self._row_groups)


def linear(
    problem: Problem,
    class_groups: Sequence[Group],
    row_groups: Sequence[Group],
    shard: Shard,
    chunk_rows: int,
    aspect_ratio: int,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss in the accumulation dtype, and the gradients that `output_mask` asks for, as `_linear` has them."""
    ranks = _ManyRanks(problem, class_groups, row_groups, shard)
    loss, *gradients = loss_and_gradients(problem, ranks, chunk_rows, aspect_ratio, output_mask)
    summed_over = (class_groups, row_groups, row_groups)
    return loss, *(  # type: ignore[return-value]
        all_reduce(gradient, "sum", groups) if asked else gradient
        for gradient, groups, asked in zip(gradients, summed_over, output_mask, strict=True)
    )


def shard_of(problem: Problem, group: dist.ProcessGroup) -> Shard:
    """This rank's range of classes. One small collective, for which the host waits."""
    classes = len(problem.linear_weight)
    no_rows = problem.input.new_empty(0, dtype=accumulation_dtype(problem.input.dtype))
    weight_sum = no_rows.new_full((), classes) if problem.weight is None else problem.weight.sum()
    _, shard = vocab_parallel.max_and_shard(no_rows, classes, weight_sum, group)
    return shard._replace(first=int(shard.first), classes=int(shard.classes))


def _ranks(group: Group) -> int:
    return group.size() if isinstance(group, dist.ProcessGroup) else group[0].size(group[1])
