# SPDX-License-Identifier: Apache-2.0
"""Every derivative that torch offers, with our operator as the innermost function, against F.cross_entropy's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from npu_ce_jit import cross_entropy, npu_cross_entropy_loss, npu_cross_entropy_loss_backward

Loss = Callable[[Tensor], Tensor]

TARGET = torch.tensor([4, 0, -100, 2, 1])
WEIGHT = torch.tensor([0.3, 1.2, 0.0, 0.7, 2.0, 0.9], dtype=torch.float64)


def logits(*batch: int) -> Tensor:
    return torch.randn(*batch, 5, 6, dtype=torch.float64)


def target_and_weight(x: Tensor) -> tuple[Tensor, Tensor]:
    return TARGET.to(x.device), WEIGHT.to(x.device, x.dtype)


def mean_loss(x: Tensor) -> Tensor:
    return cross_entropy(x, *target_and_weight(x), label_smoothing=0.1)


def mean_loss_reference(x: Tensor) -> Tensor:
    return F.cross_entropy(x, TARGET, WEIGHT, label_smoothing=0.1)


def row_losses(x: Tensor) -> Tensor:
    return cross_entropy(x, TARGET.to(x.device), reduction="none")


def row_losses_reference(x: Tensor) -> Tensor:
    return F.cross_entropy(x, TARGET, reduction="none")


def everything(x: Tensor) -> Tensor:
    """The sum of loss, z_loss, lse and entropy, with softcap."""
    o = cross_entropy(
        x, *target_and_weight(x), label_smoothing=0.1, z_loss=0.3, softcap=3.0, logit_scale=1.3,
        return_z_loss=True, return_lse=True, return_entropy=True,
    )  # fmt: skip
    return o.loss + 0.5 * o.z_loss + (o.lse * torch.arange(5).to(x.device)).sum() - 0.7 * o.entropy.sum()


def everything_reference(x: Tensor) -> Tensor:
    y = 3.0 * torch.tanh(1.3 * x / 3.0)
    lse, log_prob = y.logsumexp(-1), y.log_softmax(-1)
    z = (0.3 * lse**2 * (TARGET != -100)).sum() / 4
    ce = F.cross_entropy(y, TARGET, WEIGHT, label_smoothing=0.1)
    return ce + 1.5 * z + (lse * torch.arange(5)).sum() + 0.7 * (log_prob.exp() * log_prob).sum()


def drop_in(x: Tensor) -> Tensor:
    loss, log_prob, zloss, _ = npu_cross_entropy_loss(x, *target_and_weight(x), "sum", -100, 0.1, 0.2, True)
    return (loss + 0.5 * zloss).sum() + (log_prob * torch.arange(6).to(x.device)).sum()


def drop_in_reference(x: Tensor) -> Tensor:
    lse, log_prob = x.logsumexp(-1), x.log_softmax(-1)
    z = (0.2 * lse**2 * (TARGET != -100)).sum()
    ce = F.cross_entropy(x, TARGET, WEIGHT, reduction="sum", label_smoothing=0.1)
    return ce + 1.5 * z + (log_prob * torch.arange(6)).sum()


FORMS = {
    "cross_entropy": (mean_loss, mean_loss_reference),
    "cross_entropy none": (row_losses, row_losses_reference),
    "everything": (everything, everything_reference),
    "drop-in": (drop_in, drop_in_reference),
}


def squared(loss: Loss) -> Loss:
    """A second derivative of the loss alone would not differentiate the gradient with respect to grad_loss."""
    return lambda x: (loss(x) ** 2).sum()


tf = torch.func
TRANSFORMS: dict[str, Callable[[Loss], Tensor]] = {
    "grad": lambda f: tf.grad(squared(f))(logits()),
    "vjp": lambda f: tf.vjp(f, logits())[1](torch.ones_like(f(logits())))[0],
    "jvp": lambda f: tf.jvp(f, (logits(),), (logits().cos(),))[1],
    "vmap": lambda f: tf.vmap(f)(logits(3)),
    "vmap over the last dim": lambda f: tf.vmap(f, in_dims=2)(logits(3).movedim(0, 2)),
    "jacrev": lambda f: tf.jacrev(f)(logits()),
    "jacfwd": lambda f: tf.jacfwd(f)(logits()),
    "hessian": lambda f: tf.hessian(squared(f))(logits()),
    "vmap(grad)": lambda f: tf.vmap(tf.grad(squared(f)))(logits(3)),
    "grad(vmap)": lambda f: tf.grad(lambda x: tf.vmap(squared(f))(x).sum())(logits(3)),
    "vmap(vmap)": lambda f: tf.vmap(tf.vmap(f))(logits(2, 3)),
    "jvp(grad)": lambda f: tf.jvp(tf.grad(squared(f)), (logits(),), (logits(),))[1],
    "grad(jvp)": lambda f: tf.grad(lambda x: tf.jvp(squared(f), (x,), (x.cos(),))[1])(logits()),
    "grad(value)": lambda f: tf.grad(lambda x: tf.grad_and_value(squared(f))(x)[1] ** 2)(logits()),
    "jacrev(jacrev)": lambda f: tf.jacrev(tf.jacrev(squared(f)))(logits()),
    "jacfwd(jacfwd)": lambda f: tf.jacfwd(tf.jacfwd(squared(f)))(logits()),
    "jacrev(jacfwd)": lambda f: tf.jacrev(tf.jacfwd(squared(f)))(logits()),
    "third": lambda f: tf.grad(lambda x: (tf.hessian(squared(f))(x) ** 2).sum())(logits()),
    "vmap(hessian)": lambda f: tf.vmap(tf.hessian(squared(f)))(logits(2)),
}


@pytest.mark.feature("torch.func: grad, vjp, jvp, vmap, jacrev, jacfwd, hessian, and their compositions")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("form", FORMS)
def test_transforms_agree_with_torch(form: str, transform: str) -> None:
    ours, theirs = FORMS[form]
    torch.manual_seed(1)
    result = TRANSFORMS[transform](ours)
    torch.manual_seed(1)
    torch.testing.assert_close(result, TRANSFORMS[transform](theirs), rtol=1e-9, atol=1e-9)


# Transforms that do not differentiate the gradient: that would run plain torch operators on any device.
FIRST_ORDER = ["grad", "vjp", "vmap", "vmap over the last dim", "jacrev", "vmap(grad)", "grad(vmap)", "vmap(vmap)"]


@pytest.mark.parametrize("transform", FIRST_ORDER)
@pytest.mark.parametrize("form", FORMS)
def test_first_derivatives_come_from_the_kernels_of_the_device(form: str, transform: str, device: torch.device) -> None:
    """The transforms run on the CPU in float64, through copies; the loss and its gradient run on the device."""
    ours, theirs = FORMS[form]
    torch.manual_seed(1)
    result = TRANSFORMS[transform](lambda x: ours(x.float().to(device)).cpu().double())
    torch.manual_seed(1)
    torch.testing.assert_close(result, TRANSFORMS[transform](theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_our_operator_runs_at_the_primal_level(transform: str) -> None:
    for form, name in (("cross_entropy", "npu_ce_jit::_forward"), ("drop-in", "npu_ce_jit::_forward")):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            TRANSFORMS[transform](FORMS[form][0])
        names = {event.name for event in profile.events()}
        assert name in names
        assert "aten::nll_loss_forward" not in names
        assert "aten::cross_entropy_loss" not in names


@pytest.mark.feature("double backward")
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_forward_and_double(form: str) -> None:
    x = logits().requires_grad_()
    assert gradcheck(FORMS[form][0], (x,), check_forward_ad=True)
    assert gradgradcheck(FORMS[form][0], (x,), check_fwd_over_rev=True)


@pytest.mark.feature("forward AD")
@pytest.mark.parametrize("form", FORMS)
def test_forward_ad_in_eager_mode(form: str) -> None:
    x, v = logits(), logits()
    with forward_ad.dual_level():
        ours, theirs = (forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent for f in FORMS[form])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda a: cross_entropy(a, TARGET), lambda a: F.cross_entropy(a, TARGET)),
        (lambda a: npu_cross_entropy_loss(a, TARGET)[1], lambda a: a.log_softmax(1)),
    ],
    ids=["loss", "log_prob"],
)
def test_the_tangent_has_the_dtype_of_its_output(ours: Loss, theirs: Loss, dtype: torch.dtype) -> None:
    x, v = logits().to(dtype), logits().to(dtype)
    output, tangent = tf.jvp(ours, (x,), (v,))
    assert output.dtype == tangent.dtype == dtype
    expected = tf.jvp(theirs, (x.double(),), (v.double(),))[1]
    torch.testing.assert_close(tangent.double(), expected, rtol=0.01, atol=1e-5)


@pytest.mark.parametrize("in_dims", [(0, 0, None), (0, None, 0), (None, 0, 0), (0, 0, 0), (None, None, 0)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_vmap_over_any_argument(in_dims: tuple[int | None, ...], reduction: str) -> None:
    tensors = (
        logits(3) if in_dims[0] == 0 else logits(),
        torch.stack([TARGET, TARGET.roll(1), TARGET.roll(2)]) if in_dims[1] == 0 else TARGET,
        torch.rand(3, 6, dtype=torch.float64) if in_dims[2] == 0 else WEIGHT,
    )

    def ours(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return cross_entropy(x, t, w, reduction)

    def drop_in(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return npu_cross_entropy_loss(x, t, w, reduction)[0]

    def theirs(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return F.cross_entropy(x, t, w, reduction=reduction)

    expected = torch.stack([
        theirs(*(a if d is None else a[i] for a, d in zip(tensors, in_dims, strict=True))) for i in range(3)
    ])  # fmt: skip
    torch.testing.assert_close(tf.vmap(ours, in_dims)(*tensors), expected)
    torch.testing.assert_close(tf.vmap(drop_in, in_dims)(*tensors).reshape(expected.shape), expected)


def test_double_backward_keeps_the_terms_of_log_prob() -> None:
    """A gradient penalty beside another path: if the second-order part were dropped, no error would be raised."""
    x = logits().requires_grad_()
    for ours, theirs in FORMS.values():
        results = []
        for f in (ours, theirs):
            (first,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(x.pow(2).sum() + first.pow(2).sum(), x)
            results.append(second)
        torch.testing.assert_close(*results)


def test_the_backward_operator_refuses_to_be_differentiated() -> None:
    log_prob = logits().log_softmax(1).requires_grad_()
    gradient = npu_cross_entropy_loss_backward(torch.ones(1, dtype=torch.float64), log_prob, TARGET)
    with pytest.raises(NotImplementedError, match="expected no derivative of npu_cross_entropy_loss_backward"):
        gradient.sum().backward()

    def summed(x: Tensor) -> Tensor:
        return npu_cross_entropy_loss_backward(torch.ones(1, dtype=torch.float64), x, TARGET).sum()

    for transform in (tf.grad(summed), tf.jacfwd(summed), tf.grad(lambda x: tf.vmap(summed)(x[None]).sum())):
        with pytest.raises(NotImplementedError, match="expected no derivative"):
            transform(log_prob.detach())


def test_vmap_of_the_backward_operator() -> None:
    log_prob, grad_loss = logits(3).log_softmax(-1), torch.rand(3, 1, dtype=torch.float64)
    batched = tf.vmap(lambda g, x: npu_cross_entropy_loss_backward(g, x, TARGET, WEIGHT))(grad_loss, log_prob)
    one_by_one = [
        npu_cross_entropy_loss_backward(g, x, TARGET, WEIGHT) for g, x in zip(grad_loss, log_prob, strict=True)
    ]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


def test_a_tensor_that_outlived_its_transform_still_works() -> None:
    leaked: list[Tensor] = []
    tf.grad(lambda x: (leaked.append(x), mean_loss(x))[1])(logits())
    assert torch.equal(mean_loss(leaked[0]), mean_loss(leaked[0].clone()))
    leaf = leaked[0].clone().requires_grad_()
    mean_loss(leaf).backward()
    assert leaf.grad is not None
