# SPDX-License-Identifier: Apache-2.0
"""The virtual device's operators compute the right results."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable

import pytest
import torch
import torch_npu  # noqa: F401

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool]


def check(on_npu: torch.Tensor, on_cpu: torch.Tensor, **tolerance: float) -> None:
    assert on_npu.device.type == "npu"
    torch.testing.assert_close(on_npu.cpu(), on_cpu, **tolerance or {"rtol": 0, "atol": 0}, equal_nan=True)


def sample(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(*shape) * 9).to(dtype)


@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_casts(source: torch.dtype, target: torch.dtype) -> None:
    x = sample(5, 13, dtype=source)
    check(x.npu().to(target), x.to(target))
    check(x.npu().t()[1::3].to(target), x.t()[1::3].to(target))
    filled = torch.zeros(13, 5, dtype=target)
    check(filled.npu().copy_(x.npu().t()), filled.copy_(x.t()))


def test_rounding_to_half_and_bfloat16_is_to_the_nearest_even() -> None:
    bits = torch.arange(0, 1 << 32, 65_521, dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        check(x.npu().to(dtype), x.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fills(dtype: torch.dtype) -> None:
    like = sample(3, 7, dtype=dtype)
    for make in (torch.zeros, torch.ones, torch.empty):
        assert make(3, 7, dtype=dtype, device="npu").shape == (3, 7)
    check(torch.zeros(3, 7, dtype=dtype, device="npu"), torch.zeros(3, 7, dtype=dtype))
    check(torch.ones_like(like.npu()), torch.ones_like(like))
    check(torch.full((0, 3), 1, dtype=dtype, device="npu"), torch.full((0, 3), 1, dtype=dtype))
    check(torch.full((3, 7), 1, dtype=dtype, device="npu"), torch.full((3, 7), 1, dtype=dtype))
    on_npu, on_cpu = like.npu(), like.clone()
    on_npu[1:, ::2].fill_(1)
    on_cpu[1:, ::2].fill_(1)
    check(on_npu, on_cpu)
    mask = sample(3, 1) > 0
    check(on_npu.masked_fill_(mask.npu(), 1), on_cpu.masked_fill_(mask, 1))
    check(on_npu.zero_(), on_cpu.zero_())


STRIDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.transpose(0, 2),
    "sliced": lambda x: x[1:, ::2, 3:-1],
    "spread": lambda x: x[:, :1].expand(-1, 6, -1),
    "permuted and sliced": lambda x: x.permute(1, 2, 0)[2:, ::3],
    "one element": lambda x: x[2, 3, 5],
    "none": lambda x: x[:, 2:2],
}


@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
def test_copies_of_any_strides(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = sample(4, 5, 11)
    check(view(x.npu()).contiguous(), view(x).contiguous())
    check(view(x.npu()).clone(), view(x).clone())
    into_npu, into_cpu = torch.zeros(12, 7, 12).npu(), torch.zeros(12, 7, 12)
    for into, y in ((into_npu, view(x.npu())), (into_cpu, view(x))):
        into[tuple(slice(1, 1 + size) for size in y.shape)].copy_(y)
    check(into_npu, into_cpu)


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("compute", ARITHMETIC)
@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_arithmetic(compute: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    a, b = sample(7, 13, dtype=dtype), sample(7, 13, dtype=dtype)
    b = torch.where(b == 0, torch.ones_like(b), b)
    # A division by a scalar may be a multiplication by its reciprocal.
    near = {"rtol": torch.finfo(dtype).eps, "atol": 0.0} if dtype.is_floating_point else {"rtol": 2e-7, "atol": 0.0}
    check(compute(a.npu(), b.npu()), compute(a, b))
    check(compute(a.npu(), b[3].npu()), compute(a, b[3]))
    check(compute(a.t().npu(), b.npu()[:, :1].t()), compute(a.t(), b[:, :1].t()))
    check(compute(a.npu(), 3), compute(a, 3), **near)
    check(compute(a.npu(), 2.5), compute(a, 2.5), **near)
    check(compute(a.npu(), b.float().npu()), compute(a, b.float()), rtol=2e-7, atol=0)
    if dtype.is_floating_point:
        in_place = {operator.add: "add_", operator.sub: "sub_", operator.mul: "mul_", operator.truediv: "div_"}[compute]
        check(getattr(a.npu(), in_place)(b.npu()), getattr(a.clone(), in_place)(b))


def test_more_arithmetic() -> None:
    a, b = sample(7, 13), sample(7, 13)
    check(torch.add(a.npu(), b.npu(), alpha=-0.1), torch.add(a, b, alpha=-0.1), rtol=1e-5, atol=1e-5)
    check(1 - a.npu(), 1 - a)
    check(-a.npu(), -a)
    check(a.npu() * torch.tensor(2.5), a * 2.5)
    big = torch.tensor([2**53 + 1, -(2**62) - 3])
    check(big.npu() + 1, big + 1)


def test_comparisons() -> None:
    a = torch.tensor([1.0, float("nan"), -2.0, float("inf"), 0.0])
    for compare in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
        check(compare(a.npu(), 0), compare(a, 0))
        check(compare(a.npu(), a.flip(0).npu()), compare(a, a.flip(0)))
        check(compare(torch.arange(3).npu(), 0.5), compare(torch.arange(3), 0.5))
    check(torch.isfinite(a.npu()) & (a.npu() > 0), torch.isfinite(a) & (a > 0))
    assert torch.equal(a[:1].npu(), a[:1].npu())
    assert not torch.equal(a.npu(), a.npu())  # one element is NaN


def test_choices() -> None:
    a, b = sample(7, 13), sample(13)
    check(torch.where((a > 0).npu(), a.npu(), b.npu()), torch.where(a > 0, a, b))
    check(torch.where((a > 0).npu(), a.half().npu(), 0), torch.where(a > 0, a.half(), 0))
    for index in (torch.tensor([3, -1, 0, 3]), torch.tensor([[1, 2], [6, -7]], dtype=torch.int32), torch.tensor(5)):
        check(a.npu()[index.npu()], a[index])
        check(b.npu()[index.npu()], b[index])
        check(a.t().npu().t()[index.npu()], a[index])


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_exponentials(dtype: torch.dtype) -> None:
    a, b = sample(7, 13, dtype=dtype), sample(13, dtype=dtype)
    a[0, :3], b[0] = torch.tensor([torch.inf, -torch.inf, torch.nan]), -torch.inf
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 0}
    check(a.npu().exp(), a.exp(), **tolerance)
    check(a.npu().tanh(), a.tanh(), **tolerance)
    check(torch.logaddexp(a.npu(), b.npu()), torch.logaddexp(a, b), **tolerance)


def test_elements_of_a_line() -> None:
    a = sample(7, 13)
    index = torch.randint(7, (5, 13))
    check(a.npu().gather(0, index.npu()), a.gather(0, index))
    index = torch.randint(13, (7, 3))
    check(a.t().npu().t().gather(1, index.npu()), a.gather(1, index))
    added = sample(7, 3)
    check(a.npu().scatter_add(1, index.npu(), added.npu()), a.scatter_add(1, index, added), rtol=1e-6, atol=1e-6)
    check(a.npu().scatter_add_(1, index.npu(), added.npu()), a.scatter_add(1, index, added), rtol=1e-6, atol=1e-6)
    check(a.npu().masked_fill_((a > 0).npu(), -1.5), a.masked_fill(a > 0, -1.5))
    for k, dim, largest in ((1, 1, True), (4, -1, True), (13, 1, False), (3, 0, True)):
        for values, on_cpu in zip(a.npu().topk(k, dim, largest), a.topk(k, dim, largest), strict=True):
            check(values, on_cpu)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_reductions(dtype: torch.dtype) -> None:
    x = sample(3, 17, 5, dtype=dtype)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-4 if dtype == torch.float32 else 0.3}
    for reduce in (torch.sum, torch.mean):
        check(reduce(x.npu()), reduce(x), **tolerance)
        for dims in (0, -1, (0, 2), (1, 2)):
            for keep in (False, True):
                check(reduce(x.npu(), dims, keepdim=keep), reduce(x, dims, keepdim=keep), **tolerance)
        check(reduce(x.npu().permute(2, 0, 1), 1), reduce(x.permute(2, 0, 1), 1), **tolerance)
    check(x.npu().max(), x.max())
    check(x.npu().min(), x.min())


def test_integer_sums_are_exact() -> None:
    x = torch.tensor([[2**40, 3], [5, -7]])
    check(x.npu().sum(), x.sum())
    check((x > 3).npu().sum(0), (x > 3).sum(0))
    assert torch.zeros(0, 3).npu().sum().item() == 0


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_matrix_products(dtype: torch.dtype) -> None:
    tolerance = {"rtol": 0.0, "atol": 1e-5 if dtype == torch.float32 else 0.1}
    a, b, batch = torch.randn(7, 13).to(dtype), torch.randn(13, 5).to(dtype), torch.randn(3, 7, 13).to(dtype)
    check(a.npu() @ b.npu(), a @ b, **tolerance)
    check(b.npu().t() @ a.npu().t(), b.t() @ a.t(), **tolerance)
    check(batch.npu() @ b.npu(), batch @ b, **tolerance)
    check(torch.bmm(batch.npu(), batch.npu().mT), torch.bmm(batch, batch.mT), **tolerance)
    check(a.npu() @ b.npu()[:, 0], a @ b[:, 0], **tolerance)
    added = torch.randn(5).to(dtype)
    check(torch.addmm(added.npu(), a.npu(), b.npu(), beta=2, alpha=0.5),
          torch.addmm(added, a, b, beta=2, alpha=0.5), **tolerance)  # fmt: skip


def test_gradients_accumulate() -> None:
    x, w = sample(5, 7, dtype=torch.bfloat16), sample(7)
    grads = []
    for device in ("cpu", "npu"):
        leaf = x.detach().to(device).requires_grad_()
        (leaf.float() * w.to(device)).sum().backward()
        (leaf.float() * w.to(device)).mean(0).sum().backward()
        grads.append(leaf.grad)
    check(grads[1], grads[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_steps(dtype: torch.dtype, momentum: float, foreach: bool) -> None:
    on_cpu = torch.nn.Linear(13, 9).to(dtype)
    on_npu = copy.deepcopy(on_cpu).npu()
    x = torch.randn(2, 5, 13, dtype=dtype)
    for model in (on_cpu, on_npu):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum, weight_decay=0.01, foreach=foreach)
        for _ in range(3):
            optimiser.zero_grad(set_to_none=False)
            output = model(x.to(model.weight.device))
            (output * output).mean().backward()
            optimiser.step()
    tolerance = {"rtol": 0.0, "atol": 1e-5 if dtype == torch.float32 else 1e-2}
    for a, b in zip(on_npu.parameters(), on_cpu.parameters(), strict=True):
        check(a.detach(), b.detach(), **tolerance)


def test_tensors_print_as_on_the_cpu() -> None:
    for x in (
        torch.arange(5),
        torch.randn(3, 4),
        torch.randn(40, 50),
        torch.tensor([True]),
        torch.tensor(float("inf")),
    ):
        printed = re.sub(r"\s+", "", repr(x.npu()))
        assert printed.replace(",device='npu:0'", "") == re.sub(r"\s+", "", repr(x))
