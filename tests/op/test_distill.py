# SPDX-License-Identifier: Apache-2.0
"""Distillation from hidden states: numbers, gradients and memory, against the textbook formulas in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from rounding import require_no_worse
from shapes import DTYPES, logits
from torch import Tensor

from npu_ce_jit import linear_kl_div
from npu_ce_jit.bench.timing import peak_allocated
from npu_ce_jit.op.linear import layer

# (N, in_features, the teacher's in_features, V): all 1, primes, one more than a block of 256 classes, and of 4096.
SHAPES = [
    (1, 1, 1, 1),
    (13, 7, 5, 31),
    (17, 64, 3, 65),
    (23, 9, 5, 4099),
]
BETAS = [0.0, 0.3, 1.0]


class Models(NamedTuple):
    """A student's hidden states and head, and a teacher's."""

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    teacher_input: Tensor
    teacher_linear_weight: Tensor
    teacher_linear_bias: Tensor | None

    @property
    def student(self) -> list[Tensor]:
        return [t for t in self[:3] if t is not None]

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Models:
        """New leaves; those of the student require gradients."""
        copies = [None if t is None else t.detach().to(device, dtype, copy=True) for t in self]
        return Models(*(t if t is None else t.requires_grad_() for t in copies[:3]), *copies[3:])


class Options(NamedTuple):
    beta: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    teacher_softcap: float | None = None
    reduction: str = "mean"


def models(shape: tuple[int, int, int, int], dtype: torch.dtype, bias: bool = True) -> Models:
    rows, features, of_teacher, classes = shape
    parts: list[Tensor | None] = []
    for size in (features, of_teacher):
        weight = logits(classes, size, dtype, scale=3 / size**0.5)
        parts += [logits(rows, size, dtype, scale=1.0), weight, logits(1, classes, dtype)[0] if bias else None]
    return Models(*parts)  # type: ignore[arg-type]


def ours(on: Models, mask: Tensor | None = None, **options: Any) -> Tensor:
    return linear_kl_div(
        on.input, on.linear_weight, on.teacher_input, on.teacher_linear_weight, linear_bias=on.linear_bias,
        teacher_linear_bias=on.teacher_linear_bias, mask=None if mask is None else mask.to(on.input.device), **options,
    )  # fmt: skip


def require_close(result: Any, expected: Any) -> None:
    """Compares on the CPU."""
    torch.testing.assert_close(*([t.cpu() for t in side] for side in (result, expected)))


def gradients_of(loss: Tensor, leaves: list[Tensor], grad_loss: Tensor | None = None) -> list[Tensor]:
    """The gradients, copied to the CPU."""
    return [g.cpu() for g in torch.autograd.grad(loss, leaves, grad_loss, retain_graph=True)]


def log_probs(x: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None) -> Tensor:
    """On the CPU, in float32 or float64; only the products run in the dtype and on the device of `x`."""
    values = F.linear(x, weight, bias).cpu()
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if softcap is not None:
        values = softcap * torch.tanh(values / softcap)
    return (values / temperature).log_softmax(-1)


def textbook(on: Models, mask: Tensor | None, options: Options) -> Tensor:
    beta, temperature, softcap, teacher_softcap, reduction = options
    log_s = log_probs(*on[:3], temperature, softcap)
    log_t = log_probs(*on[3:], temperature, teacher_softcap).detach()

    def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    if beta == 0.0:
        loss = kl(log_t, log_s)
    elif beta == 1.0:
        loss = kl(log_s, log_t)
    else:
        log_m = (beta * log_t.exp() + (1 - beta) * log_s.exp()).log()
        loss = beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)
    if mask is not None:
        loss = torch.where(mask, loss, 0) if reduction == "none" else loss[mask]
    return loss if reduction == "none" else getattr(loss, reduction)()


def check(case: Models, mask: Tensor | None, options: Options, device: torch.device) -> None:
    """Checks loss and gradients; the peer is the formula over whole logits in the case's dtype.

    A loss is a sum of log-probabilities, and a gradient one of probabilities, which are at most 1; reduction "sum" adds
    over rows.
    """
    results = []
    for name, where, dtype in (("ours", device, None), ("peer", device, None), ("truth", None, torch.float64)):
        leaves = case.to(where, dtype)
        loss = ours(leaves, mask, **options._asdict()) if name == "ours" else textbook(leaves, mask, options)
        grad_loss = torch.rand(loss.shape, generator=torch.Generator().manual_seed(3)).to(loss)
        gradients = torch.autograd.grad(loss, leaves.student, grad_loss)
        results.append([loss.detach().cpu(), *(g.cpu() for g in gradients)])
    largest = max(log_probs(*part, options.temperature, None).abs().max().item() for part in (case[:3], case[3:]))
    rows = len(case.input) if options.reduction == "sum" else 1
    for result, peer, true in zip(*results, strict=True):
        assert result.dtype == peer.dtype
        assert result.shape == true.shape
        require_no_worse(result, peer, true, rows * (max(1.0, largest) if true is results[2][0] else 1.0))


def use_chunks_of(rows: int, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "_FEWEST", 0)
    monkeypatch.setattr(layer, "_SHARE", (rows + 0.5) / of)


@pytest.mark.feature("divergences of two models from hidden states")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("beta", BETAS)
def test_loss_and_gradients(
    beta: float, reduction: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    check(models(shape, dtype), None, Options(beta, reduction=reduction), device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [19, 53])
@pytest.mark.parametrize(
    "options",
    [
        Options(0.0, 0.7, 5.0, None, "none"), Options(0.0, 1.0, None, 2.0, "mean"), Options(0.9, 3.0, 2.0, 5.0, "sum"),
        Options(0.1, 1.0, None, None), Options(1.0, 0.3, None, 5.0, "sum"), Options(1.0, 2.0, 4.0, None, "none"),
    ],
    ids=str,
)  # fmt: skip
def test_every_option_in_chunks_of_any_size(
    options: Options, rows: int, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_chunks_of(rows, 53, monkeypatch)
    mask = torch.arange(53) % 3 != 1
    check(models((53, 7, 5, 131), dtype, bias=rows != 19), mask, options, device)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_any_leading_dimensions(reduction: str, device: torch.device) -> None:
    flat, mask = models((12, 5, 3, 11), torch.float32).to(device), torch.arange(12) % 4 != 0
    for batch in ((3, 4), (2, 3, 2)):
        shaped = flat._replace(input=flat.input.reshape(*batch, 5), teacher_input=flat.teacher_input.reshape(*batch, 3))
        loss = ours(shaped, mask.reshape(batch), reduction=reduction)
        assert loss.shape == (batch if reduction == "none" else ())
        assert torch.equal(loss.flatten().cpu(), ours(flat, mask, reduction=reduction).flatten().cpu())
    one = flat._replace(input=flat.input[1], teacher_input=flat.teacher_input[1])
    torch.testing.assert_close(ours(one).cpu(), ours(flat, reduction="none")[1].cpu())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("rows", [0, 4])
def test_no_rows_and_no_row_that_counts(rows: int, reduction: str, device: torch.device) -> None:
    case = models((rows, 3, 2, 5), torch.float32).to(device)
    loss = ours(case, torch.zeros(rows, dtype=torch.bool), reduction=reduction, beta=0.5)
    expected = {"none": torch.zeros(rows), "sum": torch.zeros(()), "mean": torch.tensor(torch.nan)}[reduction]
    torch.testing.assert_close(loss.cpu(), expected, equal_nan=True)
    for gradient in gradients_of(loss.sum(), case.student):
        assert not gradient.any()
    ours(models((1, 3, 2, 5), torch.float32).to(device))  # on an NPU, a test must launch a kernel


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("beta", BETAS)
def test_a_row_that_does_not_count_takes_part_in_nothing(beta: float, reduction: str, device: torch.device) -> None:
    """Its hidden states may be NaN; multiplying by 0 would keep the NaN."""
    case, mask = models((9, 5, 3, 11), torch.float32), torch.ones(9, dtype=torch.bool)
    left_out = torch.tensor([0, 4, 5])
    case.input[left_out], case.teacher_input[left_out[:2]], mask[left_out] = torch.nan, torch.inf, False
    kept = case._replace(input=case.input[mask], teacher_input=case.teacher_input[mask]).to(device)
    leaves = case.to(device)
    results = []
    for of, loss in ((leaves, ours(leaves, mask, beta=beta, reduction=reduction)), (kept, ours(kept, beta=beta))):
        value = loss.sum() / (6 if loss.dim() else 1)
        results.append((value, *torch.autograd.grad(value, of.student[1:], retain_graph=True)))
    require_close(*results)
    (gradient,) = gradients_of(ours(leaves, mask, beta=beta).sum(), [leaves.input])
    assert not gradient[left_out].any()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("beta", BETAS)
def test_classes_of_no_probability_add_nothing(beta: float, device: torch.device) -> None:
    """Biases of -inf in both models, as for a padded vocabulary."""
    case = models((7, 5, 3, 11), torch.float32)
    real = Models(case.input, case.linear_weight[:9], case.linear_bias[:9], case.teacher_input,
                  case.teacher_linear_weight[:9], case.teacher_linear_bias[:9]).to(device)  # fmt: skip
    case.linear_bias[9:], case.teacher_linear_bias[9:] = -torch.inf, -torch.inf
    padded = case.to(device)
    losses = ours(padded, beta=beta), ours(real, beta=beta)
    require_close(losses[:1], losses[1:])
    for of_padded, of_real in zip(*map(gradients_of, losses, (padded.student, real.student)), strict=True):
        torch.testing.assert_close(of_padded[: len(of_real)], of_real)
        assert not of_padded[len(of_real) :].any()


def test_models_that_agree_have_no_loss(device: torch.device) -> None:
    case = models((7, 5, 3, 300), torch.float32)
    case = Models(*case[:3], *case[:3]).to(device)
    for beta in BETAS:
        loss = ours(case, beta=beta)
        assert abs(loss.item()) <= 1e-6
        for gradient in gradients_of(loss, case.student):
            assert gradient.abs().max().item() <= 1e-6


def test_the_teacher_gets_no_gradient(device: torch.device) -> None:
    case = models((6, 4, 3, 9), torch.float32).to(device)
    case = Models(*(tensor.detach().requires_grad_() for tensor in case))
    ours(case).backward()
    assert all(tensor.grad is not None for tensor in case[:3])
    assert all(tensor.grad is None for tensor in case[3:])
    assert not ours(Models(*(tensor.detach() for tensor in case[:3]), *case[3:])).requires_grad


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_some_need_gradients(reduction: str, device: torch.device) -> None:
    case = models((6, 4, 3, 9), torch.float32)
    every = case.to(device)
    ours(every, reduction=reduction).sum().backward()
    for needed in range(3):
        leaves = case.to(device)
        for place, tensor in enumerate(leaves.student):
            tensor.requires_grad_(place == needed)
        ours(leaves, reduction=reduction).sum().backward()
        assert [t.grad is not None for t in leaves.student] == [place == needed for place in range(3)]
        assert torch.equal(leaves[needed].grad.cpu(), every[needed].grad.cpu())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_graph_that_is_kept_gives_the_same_gradients_again(reduction: str, device: torch.device) -> None:
    leaves = models((6, 4, 3, 9), torch.float32).to(device)
    loss = ours(leaves, reduction=reduction, beta=0.5).sum() * 3
    first = torch.autograd.grad(loss, leaves.student, retain_graph=True)
    kept = [g.clone() for g in first]
    for a, b, c in zip(first, kept, torch.autograd.grad(loss, leaves.student), strict=True):
        assert torch.equal(a.cpu(), b.cpu())
        assert torch.equal(a.cpu(), c.cpu())


def test_scaling_the_loss_saves_what_would_vanish_in_float16(device: torch.device) -> None:
    case = models((512, 5, 4, 300), torch.float16, bias=False)
    case, scale = case._replace(input=case.input * 2**-12), 2.0**16
    leaves, exact = case.to(device), case.to(dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ours(leaves) * scale, leaves.linear_weight)
    (expected,) = torch.autograd.grad(textbook(exact, None, Options()) * scale, exact.linear_weight)
    assert (gradient.cpu().double() - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize(
    ("beta", "dtype", "reduction"),
    [(0.0, torch.bfloat16, "mean"), (0.3, torch.float32, "none"), (1.0, torch.float32, "mean")],
)
def test_memory(beta: float, dtype: torch.dtype, reduction: str) -> None:
    """Beside the returned gradients, half of one model's float32 logits; whole logits take six times as much."""
    rows, features, classes = 2048, 16, 8192
    case = models((rows, features, 8, classes), dtype, bias=False).to()
    returned, whole = case.input.nbytes + case.linear_weight.nbytes, rows * classes * 4
    peak = peak_allocated(lambda: torch.autograd.grad(ours(case, beta=beta, reduction=reduction).sum(), case[:2]))
    assert returned < peak <= returned + 0.5 * whole
    few = case._replace(input=case.input[:512], teacher_input=case.teacher_input[:512])
    of_few = whole * 512 / rows
    with_logits = peak_allocated(
        lambda: torch.autograd.grad(textbook(few, None, Options(beta)), (few.input, few.linear_weight))
    )
    assert with_logits >= 4 * of_few  # checks that the measurement counts
