# SPDX-License-Identifier: Apache-2.0
"""docs/parallel-training.md: the step of each block, on two ranks, is that of one process with all rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pages import code_of, needs_the_pages
from ranks import run_on_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch_features import GLOO_AVERAGES

import npu_ce_jit

pytestmark = needs_the_pages

PAGE = "parallel-training.md"
VOCABULARY, HIDDEN, ROWS = 38, 11, 14
BLOCKS = {"DDP": "DistributedDataParallel(", "FSDP2": "fully_shard(", "TP": "vocab_parallel_linear_cross_entropy("}


def modules() -> tuple[nn.Module, npu_ce_jit.LinearCrossEntropyLoss]:
    torch.manual_seed(5)
    backbone = nn.Sequential(nn.Embedding(VOCABULARY, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
    return backbone, npu_ce_jit.LinearCrossEntropyLoss(HIDDEN, VOCABULARY, bias=False)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(6)
    tokens, labels = torch.randint(VOCABULARY, (ROWS,)), torch.randint(VOCABULARY, (ROWS,))
    labels[[1, 8]] = -100  # one row of each rank
    return tokens, labels


def after_a_step_of_one_process(learning_rate: float = 0.1) -> list[Tensor]:
    backbone, head = modules()
    tokens, labels = batch()
    parameters = [*backbone.parameters(), head.linear.weight]
    loss = F.cross_entropy(F.linear(backbone(tokens), head.linear.weight), labels)
    gradients = torch.autograd.grad(loss, parameters)
    return [loss.detach(), *(p.detach() - learning_rate * g for p, g in zip(parameters, gradients, strict=True))]


def check(rank: int, how: str) -> None:
    first, *others = code_of(PAGE)
    (block,) = [one for one in others if BLOCKS[how] in one]
    backbone, head = modules()
    tokens, labels = batch()
    if how != "TP":
        tokens, labels = tokens.chunk(2)[rank], labels.chunk(2)[rank]
    names: dict[str, Any] = {"backbone": backbone, "head": head, "tokens": tokens, "labels": labels}
    with torch.profiler.profile() as profile:
        exec(first + block, names)
    ours = {event.key for event in profile.key_averages()}
    assert ours & {"npu_ce_jit::_linear", "npu_ce_jit::linear_cross_entropy"}
    weight = names.get("local_weight", head.linear.weight)
    if how != "TP":
        dist.all_reduce(names["loss"].detach_())
        names["loss"] /= 2
    found = [names["loss"].detach(), *(p.detach() for p in (*backbone.parameters(), weight))]
    found = [one.full_tensor() if isinstance(one, DTensor) else one for one in found]
    # Where gloo does not average, torch's fully_shard adds up the gradients of any loss.
    is_added_up = how == "FSDP2" and not GLOO_AVERAGES
    expected = after_a_step_of_one_process(0.2 if is_added_up else 0.1)
    if how == "TP":
        expected[-1] = expected[-1].chunk(2)[rank]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", BLOCKS)
def test_a_step_on_two_ranks(how: str) -> None:
    run_on_ranks(2, check, how)
