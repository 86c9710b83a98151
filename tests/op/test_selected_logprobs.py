# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of a few classes from hidden states: numbers, gradients and memory, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rounding import require_no_worse
from shapes import DTYPES
from test_distill import SHAPES, gradients_of, log_probs, models, require_close, use_chunks_of

from npu_ce_jit import linear_selected_logprobs, linear_topk_logprobs
from npu_ce_jit.bench.timing import peak_allocated


@pytest.mark.feature("log-probabilities of chosen classes from hidden states")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.4, None), (2.5, 3.0)])
def test_selected_logprobs(
    temperature: float, softcap: float | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """The classes are in any order, and one is repeated."""
    case, classes = models(shape, dtype), shape[-1]
    indices = torch.randint(classes, (shape[0], 5))
    indices[:, 4] = indices[:, 0]
    results = []
    for name, where, as_dtype in (("ours", device, None), ("peer", device, None), ("truth", None, torch.float64)):
        leaves = case.to(where, as_dtype)
        if name == "ours":
            values = linear_selected_logprobs(
                *leaves[:2], indices.to(where), linear_bias=leaves[2], temperature=temperature, softcap=softcap
            )
        else:
            values = log_probs(*leaves[:3], temperature, softcap).gather(1, indices)
        weights = torch.rand(values.shape, generator=torch.Generator().manual_seed(3)).to(values)
        gradients = torch.autograd.grad(values, leaves.student, weights)
        results.append([values.detach().cpu(), *(g.cpu() for g in gradients)])
    for result, peer, true in zip(*results, strict=True):
        assert result.dtype == peer.dtype
        # A class's gradient cancels with p times the sum of all k, whose k partial sums round by up to k terms each.
        require_no_worse(result, peer, true, indices.shape[1] ** 2 / 2 / temperature)


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_selected_logprobs_in_chunks_and_in_any_shape(
    rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, indices = models((6, 5, 3, 11), torch.float32), torch.randint(11, (6, 4))
    leaves, whole = case.to(device), case.to(device)
    expected = linear_selected_logprobs(*whole[:2], indices.to(device), linear_bias=whole[2])
    use_chunks_of(rows, 6, monkeypatch)
    values = linear_selected_logprobs(
        leaves.input.reshape(2, 3, 5), leaves.linear_weight, indices.int().reshape(2, 3, 4).to(device),
        linear_bias=leaves.linear_bias,
    )  # fmt: skip
    assert values.shape == (2, 3, 4)
    require_close([values.flatten(0, 1)], [expected])
    factors = torch.rand(6, 4).to(device)
    require_close(
        gradients_of(values.flatten(0, 1), leaves.student, factors), gradients_of(expected, whole.student, factors)
    )


@pytest.mark.feature("log-probabilities of chosen classes from hidden states")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 4, 31])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.4, 3.0)])
def test_topk_logprobs(
    temperature: float, softcap: float | None, k: int, dtype: torch.dtype, device: torch.device
) -> None:
    case = models((6, 5, 7, 31), dtype)
    on = case.to(device)
    values, indices = linear_topk_logprobs(
        on.input.reshape(2, 3, 5), on.linear_weight, k, linear_bias=on.linear_bias, temperature=temperature,
        softcap=softcap,
    )  # fmt: skip
    assert values.shape == indices.shape == (2, 3, k)
    assert indices.dtype == torch.int64
    assert not values.requires_grad
    exact = log_probs(*case.to(dtype=torch.float64)[:3], temperature, softcap).detach().reshape(2, 3, 31)
    peer = log_probs(*on[:3], temperature, softcap).detach().reshape(2, 3, 31)
    values, indices = values.cpu(), indices.cpu()
    require_no_worse(values, peer.gather(2, indices), exact.gather(2, indices))
    assert all(len(set(row.tolist())) == k for row in indices.flatten(0, 1))
    assert (values.diff() <= 0).all()
    assert (exact.topk(k)[0] - exact.gather(2, indices)).abs().max() <= 40 * torch.finfo(dtype).eps / temperature


def test_no_rows_of_few_classes(device: torch.device) -> None:
    case = models((0, 5, 3, 11), torch.float32).to(device)
    values, indices = linear_topk_logprobs(*case[:2], 3)
    assert values.shape == indices.shape == (0, 3)
    selected = linear_selected_logprobs(*case[:2], indices)
    assert selected.shape == (0, 3)
    assert not gradients_of(selected.sum(), [case.linear_weight])[0].any()
    linear_topk_logprobs(*models((1, 5, 3, 11), torch.float32).to(device)[:2], 3)  # on an NPU, a test must launch one


def test_memory_of_few_classes() -> None:
    rows, features, classes = 2048, 16, 8192
    case = models((rows, features, 8, classes), torch.float32, bias=False).to()
    whole = rows * classes * 4

    def step() -> Any:
        indices = linear_topk_logprobs(case.teacher_input, case.teacher_linear_weight, 20)[1]
        return torch.autograd.grad(linear_selected_logprobs(*case[:2], indices).sum(), case[:2])

    assert peak_allocated(step) <= 0.25 * whole
