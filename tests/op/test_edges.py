# SPDX-License-Identifier: Apache-2.0
"""Empty, ignored, infinite and NaN rows, and targets out of range, for every kernel and both forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from probes import available_bytes, needs_the_library
from shapes import DTYPES, logits, targets
from torch import Tensor

from npu_ce_jit import cross_entropy, npu_cross_entropy_loss

NAN, INF = float("nan"), float("inf")


Form = Callable[..., Tensor]


def drop_in(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, z_loss: float = 0.0, **options: object
) -> Tensor:
    loss = npu_cross_entropy_loss(x, target, weight, lse_square_scale_for_zloss=z_loss, **options)[0]
    return loss if options.get("reduction") == "none" else loss.reshape(())


FORMS = pytest.mark.parametrize("form", [cross_entropy, drop_in], ids=["cross_entropy", "drop-in"])


@pytest.fixture(params=[cross_entropy, drop_in], ids=["cross_entropy", "drop-in"])
def form(request: pytest.FixtureRequest, device: torch.device) -> Form:
    """Either loss, computed on the device; its inputs and result are on the CPU."""

    def loss(x: Tensor, target: Tensor, weight: Tensor | None = None, **options: object) -> Tensor:
        weight = None if weight is None else weight.to(device)
        return request.param(x.to(device), target.to(device), weight, **options).cpu()

    return loss


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_rows(form: Form, dtype: torch.dtype) -> None:
    x, target = torch.empty(0, 5, dtype=dtype, requires_grad=True), torch.empty(0, dtype=torch.int64)
    assert form(x, target).isnan()
    assert form(x, target, reduction="sum") == 0
    assert form(x, target, reduction="none").shape == (0,)
    form(x, target, reduction="sum").backward()
    assert x.grad.shape == (0, 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_row_ignored(form: Form, dtype: torch.dtype, smoothing: float) -> None:
    x, target = logits(4, 6, dtype).requires_grad_(), torch.full((4,), -100)
    loss = form(x, target, label_smoothing=smoothing)
    assert loss.isnan()
    loss.backward()
    assert (x.grad == 0).all()
    assert form(x, target, reduction="sum", label_smoothing=smoothing) == 0


@pytest.mark.feature("NaN in an ignored row adds nothing")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("classes", [5, 70, 5000])
def test_an_ignored_row_of_poison_adds_exactly_nothing(
    form: Form, dtype: torch.dtype, poison: float, classes: int
) -> None:
    x, target = logits(5, classes, dtype), targets(5, classes)
    clean = x.clone()
    x[2], target[2] = poison, -100
    for reduction in ("mean", "sum", "none"):
        a, b = x.clone().requires_grad_(), clean.clone().requires_grad_()
        ours = form(a, target, reduction=reduction, label_smoothing=0.1, z_loss=0.1)
        alone = form(b, target, reduction=reduction, label_smoothing=0.1, z_loss=0.1)
        assert torch.equal(ours, alone)
        ours.sum().backward()
        alone.sum().backward()
        assert torch.equal(a.grad, b.grad)
        assert (a.grad[2] == 0).all()


@pytest.mark.parametrize("classes", [5, 70, 5000])
def test_a_masked_target_is_infinite_however_little_it_counts(form: Form, classes: int) -> None:
    x = logits(3, classes, torch.float32)
    x[:, 1] = -INF
    loss = form(x, torch.tensor([0, 1, 1]), reduction="none", label_smoothing=1 - 2**-24)
    assert (loss == INF).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [5, 70, 5000])
def test_masked_classes_are_harmless(form: Form, dtype: torch.dtype, classes: int) -> None:
    x, target = logits(6, classes, dtype), targets(6, classes)
    x[:, 1::2] = -INF
    target = target // 2 * 2
    x[3] = -INF
    x[3, target[3]] = 1.0
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    ours, theirs = form(a, target, reduction="none"), F.cross_entropy(b, target, reduction="none")
    torch.testing.assert_close(ours.double(), theirs, rtol=torch.finfo(dtype).eps, atol=2e-6)
    assert ours[3] == 0
    ours.sum().backward()
    theirs.sum().backward()
    assert not a.grad.isnan().any()
    assert (a.grad[:, 1::2] == 0).all()
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=0.005, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [NAN, INF, "all -inf"])
@pytest.mark.parametrize("place", [0, 3, -1])
@pytest.mark.parametrize("classes", [5, 70, 5000])
def test_a_bad_row_is_nan_and_the_others_are_not(
    form: Form, dtype: torch.dtype, poison: object, place: int, classes: int
) -> None:
    x, target = logits(5, classes, dtype), targets(5, classes)
    if poison == "all -inf":
        x[2] = -INF
    else:
        x[2, place] = poison
    leaf = x.requires_grad_()
    loss = form(leaf, target, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False, False]
    loss.sum().backward()
    others = torch.tensor([0, 1, 3, 4])
    assert leaf.grad[2].isnan().all()
    assert leaf.grad[others].isfinite().all()
    assert form(leaf, target).isnan()


@pytest.mark.parametrize("classes", [5, 100])
@pytest.mark.parametrize("bits", [2**31 - 1, -1], ids=["positive", "negative"])
def test_a_nan_of_any_bits_stays_nan_in_bfloat16(bits: int, classes: int, device: torch.device) -> None:
    """A NaN's mantissa may be all ones: rounding must not carry into the exponent and the sign."""
    leaf = logits(3, classes, torch.bfloat16).to(device).requires_grad_()
    gradient = torch.ones(3)
    gradient.view(torch.int32)[1] = bits
    loss = cross_entropy(leaf, targets(3, classes).to(device), reduction="none", loss_dtype=torch.float32)
    loss.backward(gradient.to(device))
    assert leaf.grad is not None
    assert leaf.grad.cpu().isnan().all(1).tolist() == [False, True, False]


@pytest.mark.feature("argmax beside the loss")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [3, 63, 64, 65, 4099])
def test_argmax_is_torchs(dtype: torch.dtype, classes: int, device: torch.device) -> None:
    """The lowest index on ties; the NaN's index if there is one; also in ignored rows."""
    x = torch.randint(-2, 3, (40, classes)).to(dtype)
    x[3, classes // 2] = NAN
    x[4] = -INF
    x[5, 1:] = INF
    x[6, 1], x[6, 2] = INF, NAN
    target = targets(40, classes, 0.5)
    ours = cross_entropy(x.to(device), target.to(device), reduction="none", return_argmax=True).argmax
    assert ours.dtype == torch.int64
    assert torch.equal(ours.cpu(), x.argmax(1))


@pytest.mark.parametrize("classes", [4, 5000])
def test_an_ignored_row_still_has_lse_entropy_and_log_prob(classes: int, device: torch.device) -> None:
    x, target = logits(4, classes, torch.float32).requires_grad_(), torch.tensor([1, -100, 2, -100])
    output = cross_entropy(x.to(device), target.to(device), return_lse=True, return_entropy=True)
    torch.testing.assert_close(output.lse.cpu(), x.logsumexp(1))
    (output.lse.sum() + output.entropy.sum()).backward()
    assert (x.grad[1] != 0).any()
    x.grad = None
    log_prob = npu_cross_entropy_loss(x.to(device), target.to(device))[1].cpu()
    torch.testing.assert_close(log_prob, x.log_softmax(1))
    log_prob[:, 0].sum().backward()
    assert (x.grad[3] != 0).any()


def test_zloss_asked_for_with_scale_0(device: torch.device) -> None:
    x, target = logits(4, 5, torch.float32).to(device), targets(4, 5).to(device)
    for reduction, shape in (("none", (4,)), ("mean", (1,)), ("sum", (1,))):
        zloss = npu_cross_entropy_loss(x, target, reduction=reduction, return_zloss=True)[2]
        assert torch.equal(zloss.cpu(), torch.zeros(shape))
    nothing_valid = npu_cross_entropy_loss(x, torch.full((4,), -100).to(device), return_zloss=True)[2]
    assert nothing_valid.cpu().isnan().all()


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, -1.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_odd_weights_are_as_torchs(form: Form, weights: list[float], smoothing: float) -> None:
    x, target, weight = logits(4, 3, torch.float32), torch.tensor([0, 1, 2, 0]), torch.tensor(weights)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = form(a, target, weight=weight, label_smoothing=smoothing)
    theirs = F.cross_entropy(b, target, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(a.grad, b.grad, equal_nan=True)


@FORMS
@pytest.mark.parametrize("value", [5, -1, -101, 2**40])
def test_a_target_out_of_range_is_named(form: Form, value: int) -> None:
    x, target = logits(7, 5, torch.float32), targets(7, 5)
    target[4] = value
    message = (
        rf"target\[4\] = {value} is out of bounds for 5 classes: expected 0 <= target < 5 or ignore_index \(-100\)"
    )
    with pytest.raises(IndexError, match=message):
        form(x, target)
    with pytest.raises(IndexError, match=message):
        form(x.requires_grad_(), target, reduction="none", label_smoothing=0.1)
    assert form(x, target, ignore_index=value).isfinite()


@needs_the_library
@pytest.mark.skipif(available_bytes() < 8e9, reason="needs 5 GB of memory, and 8 GB are not free")
def test_problems_of_more_than_2_to_31_elements() -> None:
    classes = 2**16 + 1
    rows = 2**31 // classes + 2
    x = torch.zeros(rows, classes, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[-1] = torch.randn(classes)
    last = x[-1:].double().requires_grad_()
    F.cross_entropy(last, torch.tensor([classes - 1]), reduction="sum").backward()
    target = torch.full((rows,), classes - 1)
    leaf = x.requires_grad_()
    loss = cross_entropy(leaf, target, reduction="none", inplace_backward=True)
    torch.testing.assert_close(loss[0].item(), torch.tensor(classes).log().bfloat16().item())
    loss.backward(torch.arange(rows) == rows - 1)
    assert ((leaf.grad[-1].double() - last.grad[0]).abs() <= 0.005 * last.grad[0].abs()).all()
    assert (leaf.grad[-2] == 0).all()
