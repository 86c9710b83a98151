# SPDX-License-Identifier: Apache-2.0
"""torch_npu's operator, under its three names, while it is redirected; and torch's function on an npu."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from oracle import Options, gradient, truth
from shapes import logits, targets
from switch_tools import by_ours, runs_ours
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_features import needs_kernels_of_operators
from virtual_process import run_from_the_start

import npu_ce_jit

NAME = "npu::npu_cross_entropy_loss"
UNTOUCHED = (torch_npu.npu_cross_entropy_loss, torch._C._dispatch_dump(NAME))
NAMES = {
    "torch_npu": torch_npu.npu_cross_entropy_loss,
    "torch.ops": torch.ops.npu.npu_cross_entropy_loss,
    "overload": torch.ops.npu.npu_cross_entropy_loss.default,
}


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    npu_ce_jit.uninstall()
    assert (torch_npu.npu_cross_entropy_loss, torch._C._dispatch_dump(NAME)) == UNTOUCHED


@pytest.mark.feature("torch_npu.npu_cross_entropy_loss redirected")
@pytest.mark.parametrize("name", ["torch_npu", "torch.ops", pytest.param("overload", marks=needs_kernels_of_operators)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_results_and_gradients_with_every_option(reduction: str, dtype: torch.dtype, name: str) -> None:
    x, target, weight = logits(13, 37, dtype), targets(13, 37, 0.2), torch.rand(37) + 0.5
    options = Options(reduction, -100, 0.1, 0.01)
    leaf = x.npu().requires_grad_()
    with npu_ce_jit.installed():
        loss, log_prob, zloss, lse = by_ours(
            lambda: NAMES[name](leaf, target.npu(), weight.npu(), reduction, -100, 0.1, 0.01, True)
        )
        rows = (13,) if reduction == "none" else (1,)
        assert [tuple(one.shape) for one in (loss, log_prob, zloss, lse)] == [rows, (13, 37), rows, (13,)]
        assert {one.dtype for one in (loss, log_prob, zloss, lse)} == {dtype}
        assert [one.requires_grad for one in (loss, log_prob, zloss, lse)] == [True, False, True, False]
        loss.backward(torch.ones_like(loss))
    exact = truth(x.double(), target, weight.double(), options)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    shape = (13,) if reduction == "none" else ()
    for found, expected in (
        (loss.reshape(shape), exact.loss), (zloss.reshape(shape), exact.z_loss), (log_prob, exact.log_prob),
        (lse, x.double().logsumexp(1)),
    ):  # fmt: skip
        torch.testing.assert_close(found.detach().cpu().double(), expected, rtol=tolerance, atol=tolerance)
    expected = gradient(x, target, weight, options, torch.ones(shape), torch.float64)
    torch.testing.assert_close(leaf.grad.cpu().double(), expected, rtol=tolerance, atol=tolerance)


def test_what_is_not_asked_is_empty_as_theirs() -> None:
    x, target = logits(3, 5, torch.bfloat16).npu(), targets(3, 5).npu()
    with npu_ce_jit.installed():
        for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
            with mode():
                outputs = torch_npu.npu_cross_entropy_loss(x, target)
            assert [(one.dtype, *one.shape) for one in outputs] == [
                (torch.bfloat16, 1), (torch.bfloat16, 3, 5), (torch.bfloat16, 0), (torch.bfloat16, 0)
            ]  # fmt: skip


def test_what_our_checks_refuse_is_theirs() -> None:
    """The virtual npu has none of the vendor's kernels, so a call that reaches them fails with their name."""
    x, target = logits(3, 5, torch.float32).npu(), targets(3, 5).npu()
    with npu_ce_jit.installed():
        for options in ({"reduction": "avg"}, {"label_smoothing": 1.5}, {"weight": torch.rand(4).npu()}):
            with pytest.raises(RuntimeError, match="aclnnCrossEntropyLoss"):
                torch_npu.npu_cross_entropy_loss(x, target, **options)
        with pytest.raises(NotImplementedError, match=r"'npu::npu_cross_entropy_loss' .*'CPU' backend"):
            torch_npu.npu_cross_entropy_loss(x.cpu(), target.cpu())
    with pytest.raises(RuntimeError, match="aclnnCrossEntropyLoss"):
        torch_npu.npu_cross_entropy_loss(x, target)


def test_logits_in_a_format_of_torch_npu_are_theirs() -> None:
    hidden = torch_npu.empty_with_format((5, 70), dtype=torch.float32, device="npu", acl_format=29)
    target = targets(5, 70).npu()
    with npu_ce_jit.installed(), pytest.raises(RuntimeError, match="operator npu_cross_entropy_loss do not support"):
        torch_npu.npu_cross_entropy_loss(hidden, target)


def test_fake_tensors_have_the_shapes_of_real_ones_and_theirs_again_afterwards() -> None:
    def shapes() -> list[tuple[int, ...]]:
        with FakeTensorMode():
            x, target = torch.empty(4, 5, device="npu:0"), torch.empty(4, device="npu:0", dtype=torch.int64)
            return [
                tuple(one.shape) for one in (*torch_npu.npu_cross_entropy_loss(x, target), F.cross_entropy(x, target))
            ]

    theirs = [(1,), (4, 5), (1,), (4,), ()]  # Meta gives shapes to outputs that torch_npu's kernel leaves empty
    assert shapes() == theirs
    with npu_ce_jit.installed():
        assert shapes() == [(1,), (4, 5), (0,), (0,), ()]
    assert shapes() == theirs


@pytest.mark.feature("torch.compile, torch_npu.npu_cross_entropy_loss redirected")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_fullgraph(backend: str) -> None:
    x, target = logits(6, 9, torch.float32), targets(6, 9, 0.2)

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return torch_npu.npu_cross_entropy_loss(x, target, None, "sum", -100, 0.1)[0] + F.cross_entropy(x, target)

    leaf, exact_leaf = x.npu().requires_grad_(), x.double().requires_grad_()
    torch._dynamo.reset()
    with npu_ce_jit.installed():
        found = torch.compile(loss, backend=backend, fullgraph=True)(leaf, target.npu())
        found.backward()
    exact = F.cross_entropy(exact_leaf, target, reduction="sum", label_smoothing=0.1)
    exact = exact + F.cross_entropy(exact_leaf, target)
    exact.backward()
    torch.testing.assert_close(found.detach().cpu().double(), exact.detach()[None], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaf.grad.cpu().double(), exact_leaf.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.feature("autocast on npu, F.cross_entropy redirected")
def test_autocast_dtypes_are_theirs() -> None:
    """torch_npu's operator cannot run here, but autocast also casts fake tensors."""

    def dtypes() -> list[torch.dtype]:
        with FakeTensorMode(), torch.autocast("npu", torch.bfloat16):
            x = torch.empty(4, 5, device="npu:0", dtype=torch.bfloat16)
            target = torch.empty(4, device="npu:0", dtype=torch.int64)
            outputs = torch_npu.npu_cross_entropy_loss(x, target)
            return [F.cross_entropy(x, target).dtype, *(one.dtype for one in outputs)]

    expected = dtypes()
    assert expected[0] is torch.float32
    with npu_ce_jit.installed():
        assert dtypes() == expected


@pytest.mark.feature("training script on npu without an edit")
def test_a_training_loop_on_the_npu_takes_the_steps_of_the_cpu() -> None:
    def losses(device: str) -> list[float]:
        torch.manual_seed(1)
        weight = (torch.randn(11, 6) * 0.1).to(device).requires_grad_()
        x, target = torch.randn(64, 6), targets(64, 11, 0.1).to(device)
        criterion, found = nn.CrossEntropyLoss(label_smoothing=0.05), []
        for _ in range(5):
            # The product is on the CPU for both devices, so that only the loss differs.
            loss = criterion((x @ weight.cpu().T).to(device), target)
            (step,) = torch.autograd.grad(loss, weight)
            weight = (weight.detach().cpu() - 0.5 * step.cpu()).to(device).requires_grad_()
            found.append(loss.item())
        return found

    on_cpu = losses("cpu")
    with npu_ce_jit.installed():
        on_npu, ours = runs_ours(lambda: losses("npu"))
    assert ours
    assert on_cpu[-1] < on_cpu[0]
    assert on_npu == pytest.approx(on_cpu, rel=1e-5)


IMPORTED_LATER = """
import torch, npu_ce_jit
npu_ce_jit.install()
operator = "torch.ops.npu.npu_cross_entropy_loss"
print(npu_ce_jit.info()["answers"][operator]["by"])
import torch_npu
print(npu_ce_jit.info()["answers"][operator]["by"])
npu_ce_jit.install()
print(npu_ce_jit.info()["answers"][operator]["by"])
npu_ce_jit.uninstall()
print(npu_ce_jit.info()["answers"][operator]["by"])
"""


def test_torch_npu_that_is_imported_later_takes_another_install() -> None:
    done = run_from_the_start(IMPORTED_LATER, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.stdout.split() == ["none", "torch_npu", "npu_ce_jit", "torch_npu"], done.stderr
