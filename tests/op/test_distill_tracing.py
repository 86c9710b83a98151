# SPDX-License-Identifier: Apache-2.0
"""Distillation under torch.compile, FakeTensor, autocast and checkpoints gives the numbers of a plain step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_distill import Models, models, ours, require_close
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from npu_ce_jit import linear_selected_logprobs, linear_topk_logprobs
from npu_ce_jit.op.linear.divergence import linear_divergence
from npu_ce_jit.op.linear.selected import linear_selected, linear_topk


def divergence(*on: Tensor) -> Tensor:
    return ours(Models(*on), on[0][:, 0] > -1, beta=0.4, temperature=0.8, softcap=9.0)


def divergence_of_rows(*on: Tensor) -> Tensor:
    loss = ours(Models(*on), reduction="none", beta=1.0)
    return (loss * loss).sum()


def topk(*on: Tensor) -> Tensor:
    """Forward KL divergence over the teacher's five largest classes."""
    log_t, indices = linear_topk_logprobs(on[3], on[4], 5, linear_bias=on[5])
    log_s = linear_selected_logprobs(on[0], on[1], indices, linear_bias=on[2])
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()


LOSSES = [divergence, divergence_of_rows, topk]
Loss = Callable[..., Tensor]


def step(loss: Loss, on: Models) -> tuple[Tensor, ...]:
    value = loss(*on)
    return value.detach(), *torch.autograd.grad(value, on.student)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_graph_compiled(loss: Loss, dtype: torch.dtype, device: torch.device) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for rows in (6, 7, 9):
        on = models((rows, 5, 3, 11), dtype).to(device)
        require_close(step(compiled, on), step(loss, on))
    assert counter.frame_count == 2  # one for the first number of rows, and one for all others


@pytest.mark.parametrize("loss", LOSSES)
def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones(loss: Loss, any_device: torch.device) -> None:
    on = models((6, 5, 3, 11), torch.bfloat16).to(any_device)
    mode = FakeTensorMode()
    fakes = Models(*(mode.from_tensor(t) for t in on))
    with mode:
        results = step(loss, fakes)
    for fake, real in zip(results, step(loss, on), strict=True):
        assert (fake.shape, fake.dtype, fake.device.type) == (real.shape, real.dtype, real.device.type)


def test_the_operators_are_what_they_say() -> None:
    """torch's own check of schema, autograd registration, fakes and AOT."""
    on = models((6, 5, 3, 11), torch.float32).to()
    mask, indices = torch.arange(6) > 1, torch.randint(11, (6, 3))
    options = (0.7, None, 3.0, 0.5)
    torch.library.opcheck(linear_divergence, (*on, mask, None, *options, 0, [False] * 3))
    # Not AOT: a graph cannot return the gradients that its backward reads, and the losses never request that.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(linear_divergence, (*on, mask, None, *options, 1, [True] * 3), test_utils=checks)
    torch.library.opcheck(linear_selected, (*on[:3], indices, None, 0.7, None, [False] * 3))
    torch.library.opcheck(linear_topk, (*(t.detach() for t in on[:3]), 2, 0.7, None))


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_casts_as_linear_does(loss: Loss, device: torch.device) -> None:
    on = models((6, 5, 3, 11), torch.float32).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        value = loss(*on)
    assert value.dtype == torch.float32
    gradients = torch.autograd.grad(value, on.student)
    halves = on.to(dtype=torch.bfloat16)
    expected, *expected_gradients = step(loss, halves)
    require_close([value], [expected])
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    require_close(gradients, [gradient.float() for gradient in expected_gradients])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool, loss: Loss, device: torch.device) -> None:
    on = models((6, 5, 3, 11), torch.float32).to(device)
    _, *expected = step(loss, on)

    def recomputed(*parts: Any) -> Tensor:
        return loss(*parts)

    checkpoint(recomputed, *on, use_reentrant=reentrant).backward()
    require_close([tensor.grad for tensor in on.student], expected)
