# SPDX-License-Identifier: Apache-2.0
"""Arguments that a call refuses, reports of a refused launch, the memory of a step, and traces of calls."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from shapes import logits, targets
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from virtual_cann import observe
from virtual_process import run

from npu_ce_jit import cross_entropy, npu_cross_entropy_loss, register_fake_npu
from npu_ce_jit.bench.timing import peak_memory
from npu_ce_jit.errors import FakeNpuError
from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.schema import LSE, LossTerms

TERMS = LossTerms(1, -100, 0.0, 0.0, 0.0, 1.0)

FIRST_CALL_ON_TWO_DEVICES = """
import torch, torch_npu, npu_ce_jit
forward = torch.ops.npu_ce_jit._forward
for x, target in ((torch.zeros(3, 5), torch.zeros(3).npu()), (torch.zeros(3, 5).npu(), torch.zeros(3))):
    try:
        forward(x, target.long(), None, 1, -100, 0.0, 0.0, 0.0, 1.0, 0, torch.float32)
    except RuntimeError as error:
        print(error)
"""


def test_tensors_on_two_devices_are_refused_by_the_very_first_call_too() -> None:
    done = run(FIRST_CALL_ON_TWO_DEVICES)
    first, second = done.stdout.splitlines()
    assert "expected input on an npu, got cpu" in first, done.stderr
    assert "expected target on input's device npu:0, got cpu" in second


CHECK_TARGETS = """
import torch, torch_npu, npu_ce_jit
x = torch.zeros(4, 5).npu()
for form in (npu_ce_jit.cross_entropy, npu_ce_jit.npu_cross_entropy_loss):
    try:
        form(x, torch.tensor([0, -100, 5, 9], dtype=torch.int32).npu())
    except IndexError as error:
        print(error)
    print(form(x, torch.tensor([0, -100, 4, 1]).npu())[0].item() > 0 if form is not npu_ce_jit.cross_entropy else True)
"""


def test_targets_are_checked_where_that_is_asked() -> None:
    done = run(CHECK_TARGETS, NPU_CE_JIT_CHECK_TARGETS="1")
    said = "target[2] = 5 is out of bounds for 5 classes: expected 0 <= target < 5 or ignore_index (-100)\nTrue\n"
    assert done.stdout == 2 * said, done.stderr


def test_what_the_internal_operators_refuse() -> None:
    x, target = torch.zeros(3, 5).npu(), torch.zeros(3, dtype=torch.int64).npu()

    def forward(x: Tensor, target: Tensor, weight: Tensor | None = None) -> object:
        return OPS._forward.default(x, target, weight, *TERMS, LSE, torch.float32)

    observe.clear_reports()
    with pytest.raises(RuntimeError, match="expected target on input's device npu:0, got npu:1"):
        forward(x, target.to("npu:1"))
    with pytest.raises(RuntimeError, match="expected weight on input's device npu:0, got cpu"):
        forward(x, target, torch.ones(5))
    with pytest.raises(RuntimeError, match="expected input on an npu, got cpu"):
        forward(x.cpu(), target)
    with pytest.raises(ValueError, match=re.escape("input batch_size (3) to match target batch_size (2)")):
        forward(x, target[:2])
    wide = torch.empty(3, 5, dtype=torch.float64, device="npu")
    with pytest.raises(RuntimeError, match="expected input of dtype float32, bfloat16 or float16 on npu, got float64"):
        forward(wide, target)
    with pytest.raises(NotImplementedError, match="or float64 except on npu, got float64 on npu"):
        cross_entropy(wide, target)
    torch.npu.synchronize()
    assert observe.reports() == []


OTHER_CHIP = """
import torch, torch_npu, npu_ce_jit
x, target = torch.zeros(4, 5).npu(), torch.zeros(4, dtype=torch.int64).npu()
for _ in range(2):
    try:
        npu_ce_jit.cross_entropy(x, target)
    except NotImplementedError as error:
        print(error)
print(npu_ce_jit.cross_entropy(x.cpu(), target.cpu()).item())
"""


def test_a_chip_of_another_kind_is_refused_by_name() -> None:
    done = run(OTHER_CHIP, VIRTUAL_CANN_SOC="Ascend310P3")
    first, second, on_cpu = done.stdout.splitlines()
    assert first == second
    assert first.startswith("npu_ce_jit has no kernels for npu:0. Expected a chip of Atlas A2 or A3")
    assert "got Ascend310P3" in first
    assert float(on_cpu) == pytest.approx(1.609438)


def in_format(shape: tuple[int, ...], acl_format: int) -> Tensor:
    return torch_npu.empty_with_format(shape, dtype=torch.float32, device="npu", acl_format=acl_format)


def test_elements_that_lie_otherwise_than_strides_say_are_refused() -> None:
    hidden, target = in_format((5, 70), torch_npu.Format.FRACTAL_NZ), targets(5, 70).npu()
    assert torch_npu.get_npu_format(hidden) == torch_npu.Format.FRACTAL_NZ
    for loss in (cross_entropy, npu_cross_entropy_loss):
        with pytest.raises(
            RuntimeError, match=r"expected input in a format .* got FRACTAL_NZ.*npu_format_cast\(input,"
        ):
            loss(hidden, target)
    leaf = logits(5, 70, torch.float32).npu().requires_grad_()
    log_prob = npu_cross_entropy_loss(leaf, target)[1]
    with pytest.raises(RuntimeError, match=r"expected grad_log_prob in a format .* got FRACTAL_NZ"):
        log_prob.backward(hidden)


@pytest.mark.parametrize("name", ["ND", "NCHW"])
def test_the_other_formats_are_taken(device: torch.device, name: str) -> None:
    x, target = logits(5, 70, torch.float32), targets(5, 70)
    there = in_format((5, 70), getattr(torch_npu.Format, name)).copy_(x)
    torch.testing.assert_close(cross_entropy(there, target.to(device)).cpu(), F.cross_entropy(x, target))


REFUSED_LAUNCH = """
import torch, torch_npu, npu_ce_jit
from virtual_cann import observe
x, target = torch.zeros(4, 5).npu(), torch.zeros(4, dtype=torch.int64).npu()
npu_ce_jit.cross_entropy(x, target)
torch.npu.synchronize()
observe.set_faults("lost=1")
x.add_(1).add_(1)
try:
    torch.npu.synchronize()
except RuntimeError:
    pass  # told of the second add; from here on every launch is refused at once
try:
    npu_ce_jit.cross_entropy(x, target)
    torch.npu.synchronize()
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("queue", ["0", "1"])
def test_a_launch_that_is_refused_is_told_with_call_code_and_meaning(queue: str) -> None:
    done = run(REFUSED_LAUNCH, TASK_QUEUE_ENABLE=queue)
    said = r"npu_ce_jit::_forward: expected its kernels to be launched, got .*ACL error 507010: .*device 0 is lost"
    # In the queue's thread, torch_npu prints an error to stderr; ACL gives its text once, to our message.
    assert re.search(said, done.stdout if queue == "0" else done.stderr), done.stdout + done.stderr
    assert "npu_ce_jit::_forward" in done.stdout, done.stderr


def step(loss: str, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    leaf = x.detach().requires_grad_()
    if loss == "drop-in":
        outputs = npu_cross_entropy_loss(leaf, target)
    else:
        outputs = (cross_entropy(leaf, target, inplace_backward=loss == "in place"),)
    return (*outputs, *torch.autograd.grad(outputs[0].sum(), leaf))


# The drop-in needs room for log_prob and the gradient; each loss needs a little for values of each row.
@pytest.mark.parametrize(("loss", "most"), [("cross_entropy", 1.05), ("in place", 0.1), ("drop-in", 2.05)])
def test_the_memory_that_a_step_takes_over_its_inputs(device: torch.device, loss: str, most: float) -> None:
    x, target = (
        torch.empty(2048, 32000, dtype=torch.bfloat16, device=device).fill_(0.5),
        targets(2048, 32000).to(device),
    )
    step(loss, x[:8], target[:8])  # so that one-time allocations are not counted
    peak = peak_memory(lambda: step(loss, x, target), device)
    assert peak is not None
    assert peak / (x.numel() * x.element_size()) <= most


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_code_for_the_device_it_is_one_graph_of_our_operators(
    device: torch.device, backend: str
) -> None:
    x, target = logits(6, 300, torch.float32), targets(6, 300)
    for loss in (cross_entropy, lambda x, target: npu_cross_entropy_loss(x, target)[0].sum()):
        compiled = torch.compile(lambda x, target, loss=loss: 2 * loss(3 * x, target), backend=backend, fullgraph=True)
        leaf, true = x.to(device).requires_grad_(), x.clone().requires_grad_()
        value, right = compiled(leaf, target.to(device)), 2 * F.cross_entropy(3 * true, target)
        value.backward()
        right.backward()
        torch.testing.assert_close(value.cpu(), right)
        torch.testing.assert_close(leaf.grad.cpu(), true.grad)
        torch._dynamo.reset()


def test_a_fake_npu_is_refused_beside_a_real_one() -> None:
    with pytest.raises(FakeNpuError, match="Import torch_npu"):
        register_fake_npu()


class Operators(TorchDispatchMode):
    """Records the operators that run below autograd, and which of them got logits that are not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0
        self.apart: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = {OPS._forward.default: 0, OPS._backward.default: 5}.get(func)
        if place is not None and not args[place].is_contiguous():
            self.apart.append(str(func))
        self.copies += func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("images", [1, 2])
def test_logits_whose_classes_are_apart_are_copied_once(images: int) -> None:
    x, target = torch.randn(images, 5, 6, 7), torch.randint(5, (images, 6, 7))
    on_npu = x.npu().requires_grad_()
    with Operators() as seen:
        (gradient,) = torch.autograd.grad(cross_entropy(on_npu, target.npu()), on_npu)
    assert seen.copies == 1 and not seen.apart, (seen.copies, seen.apart)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(x, target), x)
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-4, atol=1e-6)
