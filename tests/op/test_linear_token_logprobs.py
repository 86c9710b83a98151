# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities from hidden states: numbers and gradients against float64, memory, tracing, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linear_outputs import log_probabilities
from shapes import DTYPES, targets
from test_linear_cross_entropy import layer, require_no_worse
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from npu_ce_jit import TokenLogprobs, linear_token_logprobs, token_logprobs
from npu_ce_jit.bench.timing import peak_allocated

ALL = {"return_entropy": True, "return_sum_squared_probs": True}


@pytest.mark.feature("log-probabilities and entropy from hidden states")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("temperature", "softcap", "ignore_index"), [(1.0, None, -100), (0.6, None, 3), (1.7, 4.0, -1)]
)
def test_values_and_gradients_of_all_of_them_together(
    temperature: float, softcap: float | None, ignore_index: int, dtype: torch.dtype, device: torch.device
) -> None:
    case, target = layer((13, 7, 31), dtype), targets(13, 31, 0.3, ignore_index)
    results = []
    for name, where, of in (("ours", device, None), ("peer", device, None), ("truth", None, torch.float64)):
        leaves = case.to(where, of)
        if name == "ours":
            found = linear_token_logprobs(
                leaves.input, leaves.linear_weight, target.to(where), linear_bias=leaves.linear_bias,
                temperature=temperature, softcap=softcap, ignore_index=ignore_index, **ALL,
            )  # fmt: skip
            assert isinstance(found, TokenLogprobs)
            assert {value.dtype for value in found} == {torch.promote_types(dtype, torch.float32)}
            values = list(found)
        else:
            values = log_probabilities(leaves.logits().cpu(), target, temperature, softcap, ignore_index)
        generator = torch.Generator().manual_seed(3)
        given = [torch.rand(v.shape, generator=generator).to(v.device, v.dtype) for v in values]
        gradients = torch.autograd.grad(values, list(leaves), given)
        results.append([t.detach().cpu() for t in (*values, *gradients)])
    for result, peer, true in zip(*results, strict=True):
        require_no_worse(result, peer, true)
    for value in results[0][:3]:
        assert not value[target == ignore_index].any()
        assert not torch.signbit(value[target == ignore_index]).any()


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 2)], ids=str)
def test_any_number_of_leading_dimensions_and_ignored_rows_of_nan(shape: tuple[int, ...], device: torch.device) -> None:
    x, w, y = torch.randn(*shape, 5), torch.randn(9, 5), torch.randint(9, shape)
    expected = token_logprobs(F.linear(x, w), y, return_entropy=True)
    if shape:
        x.view(-1, 5)[1], y.view(-1)[1] = torch.nan, -100
    leaves = [t.to(device).requires_grad_() for t in (x, w)]
    found = linear_token_logprobs(*leaves, y.to(device), return_entropy=True)
    counted = y != -100
    for value, right in zip(found[:2], expected[:2], strict=True):
        assert value.shape == shape
        torch.testing.assert_close(value.cpu(), torch.where(counted, right, 0), rtol=1e-5, atol=1e-5)
    for g in torch.autograd.grad(found.logprobs.sum() + found.entropy.sum(), leaves):
        assert g.cpu().isfinite().all()


@pytest.mark.feature("logits never whole")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype: torch.dtype) -> None:
    """Beside the inputs and the returned gradients: at most 0.35 of the logits, as for the loss."""
    rows, features, classes = 4096, 16, 8192
    case, target = layer((rows, features, classes), dtype, bias=False).to(), targets(rows, classes, 0.05)

    def step() -> None:
        found = linear_token_logprobs(case.input, case.linear_weight, target, return_entropy=True)
        torch.autograd.grad((found.logprobs + found.entropy).sum(), case[:2])

    returned = case.input.nbytes + case.linear_weight.nbytes
    assert returned < peak_allocated(step) <= returned + 0.35 * rows * classes * dtype.itemsize


def test_derivatives_of_every_kind() -> None:
    torch.manual_seed(4)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (7, 3), (7,))]
    target = torch.tensor([4, 0, -100, 2, 1])

    def values(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(linear_token_logprobs(x, w, target, linear_bias=b, temperature=0.7, softcap=3.0, **ALL))

    assert gradcheck(values, leaves, check_forward_ad=True)
    assert gradgradcheck(values, leaves)


def test_compiled_checkpointed_and_under_autocast(device: torch.device) -> None:
    case, target = layer((9, 6, 17), torch.float32), targets(9, 17).to(device)

    def step(x: Tensor, w: Tensor) -> Tensor:
        found = linear_token_logprobs(x, w, target, temperature=0.8, return_entropy=True)
        return found.logprobs.sum() - 0.1 * found.entropy.sum()

    results = []
    for form in (
        step,
        torch.compile(step, backend="aot_eager", fullgraph=True),
        lambda *t: checkpoint(step, *t, use_reentrant=False),
    ):
        leaves = case.to(device)
        results.append([g.cpu() for g in torch.autograd.grad(form(*leaves[:2]), leaves[:2])])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])
    leaves = case.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        found = linear_token_logprobs(*leaves[:2], target)
    assert found.dtype == torch.float32
    expected = linear_token_logprobs(*leaves[:2], target)
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0.02, atol=0.02)


def test_errors() -> None:
    good: dict[str, Any] = {
        "input": torch.zeros(3, 4), "linear_weight": torch.zeros(5, 4), "target": torch.zeros(3, dtype=torch.int64),
    }  # fmt: skip
    for change, error, text in (
        ({"temperature": 0.0}, RuntimeError, r"expected temperature finite and above 0, got 0\.0"),
        ({"temperature": float("inf")}, RuntimeError, r"expected temperature finite and above 0, got inf"),
        ({"temperature": torch.ones(())}, TypeError, r"expected temperature to be a number, got a Tensor"),
        ({"softcap": -1.0}, RuntimeError, r"expected softcap finite and above 0, or None, got -1\.0"),
        ({"target": [0, 1]}, TypeError, r"expected target to be a Tensor, got list"),
        ({"target": torch.zeros(3, 5)}, RuntimeError, r"expected target of dtype int64 or int32, got float32"),
        ({"target": torch.tensor([0, 5, 1])}, IndexError, r"target\[1\] = 5 is out of bounds for 5 classes"),
        ({"input": torch.zeros(2, 3, 4)}, RuntimeError, r"expected target of shape \[2, 3\] for input of shape"),
        ({"linear_weight": torch.zeros(0)}, RuntimeError, r"Where ZeRO-3 or FSDP takes parameters apart"),
        ({"linear_weight": torch.zeros(5, 3)}, RuntimeError, r"expected linear_weight whose last dimension is input's"),
    ):
        with pytest.raises(error, match=text):
            linear_token_logprobs(**{**good, **change})
