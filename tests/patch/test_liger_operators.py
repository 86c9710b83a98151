# SPDX-License-Identifier: Apache-2.0
"""Liger's losses with the patch, against themselves without: on a CPU, Triton interprets its kernels."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from probes import needs_frameworks
from ranks import run_on_ranks
from switch_tools import by_ours
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.errors import PatchError

pytestmark = needs_frameworks("liger_kernel", "triton")

ROWS, HIDDEN, VOCAB = 13, 19, 211
ALL = {"return_z_loss": True, "return_token_accuracy": True, "return_predicted_tokens": True}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"lse_square_scale": 1e-2, **ALL},
    {"reduction": "none", "lse_square_scale": 1e-2, **ALL},
    {"reduction": "sum", "ignore_index": 3, **ALL},
    {"reduction": "none", "ignore_index": -1, **ALL},
]
SCALED = [{"use_token_scaling": True, **options} for options in OPTIONS]


def functional() -> Any:
    """Liger's module; the variable is set before its import, which reads it."""
    os.environ["TRITON_INTERPRET"] = "1"
    import liger_kernel.transformers.functional as module

    return module


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias; targets of which some are ignored, and some equal the prediction."""
    hidden, weight, bias = torch.randn(ROWS, HIDDEN), torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB)
    target = F.linear(hidden, weight, bias).argmax(-1)
    target[::3] = torch.randint(VOCAB, target[::3].shape)
    target[4], target[9] = -100, 3
    return (*(t.to(dtype).requires_grad_() for t in (hidden, weight, bias)), target)  # type: ignore[return-value]


def results(found: Any, *of: Tensor) -> list[Tensor | None]:
    """The outputs of a loss, and the loss's gradients; z_loss has none."""
    outputs = [found, None, None, None]
    if not isinstance(found, Tensor):
        outputs = [found.loss, found.z_loss, found.token_accuracy, found.predicted_tokens]
    loss, z_loss = outputs[:2]
    total = (loss * torch.linspace(-1, 2, loss.numel()).view(loss.shape)).sum() + (
        0 if z_loss is None else z_loss.sum()
    )
    return [*outputs, *torch.autograd.grad(total, of)]


def require_near(found: list[Tensor | None], truth: list[Tensor | None], tolerance: float = 3e-6) -> None:
    for one, other in zip(found, truth, strict=True):
        assert (one is None) == (other is None)
        if one is None or other is None:
            continue
        assert one.shape == other.shape
        if other.dtype is torch.int64:
            assert torch.equal(one, other)
        else:
            assert (one.double() - other.double()).norm() <= tolerance * other.double().norm()


def _of_hidden_states(rank: int) -> None:
    liger = functional()
    for options in OPTIONS + SCALED:
        hidden, weight, bias, target = problem()
        given = {"ignore_index": -100, **options}
        target[target == -100] = given["ignore_index"]

        def call() -> list[Tensor | None]:
            found = liger.liger_fused_linear_cross_entropy(hidden, weight, target, bias, **given)  # noqa: B023
            return results(found, hidden, weight, bias)  # noqa: B023

        truth = call()
        with npu_ce_jit.patch.liger():
            require_near(by_ours(call), truth)


def _of_logits(rank: int) -> None:
    liger = functional()
    for options in OPTIONS:
        hidden, weight, _, target = problem()
        given = {"ignore_index": -100, **options}
        target[target == -100] = given["ignore_index"]
        logits = F.linear(hidden, weight).detach().requires_grad_()

        def call() -> list[Tensor | None]:
            return results(liger.liger_cross_entropy(logits * 1, target, **given), logits)  # noqa: B023

        truth = call()
        with npu_ce_jit.patch.liger():
            require_near(by_ours(call), truth)


def _its_modules_and_dispatcher(rank: int) -> None:
    functional()
    from liger_kernel.functional import fused_linear_cross_entropy
    from liger_kernel.transformers import LigerCrossEntropyLoss, LigerFusedLinearCrossEntropyLoss

    hidden, weight, _, target = problem()
    logits = F.linear(hidden, weight).detach()
    calls = [
        lambda: LigerFusedLinearCrossEntropyLoss()(weight, hidden, target),
        lambda: LigerCrossEntropyLoss()(logits * 1, target),
        lambda: fused_linear_cross_entropy(hidden, weight, target)[0],
    ]
    truths = [call() for call in calls]
    with npu_ce_jit.patch.liger() as patch:
        assert npu_ce_jit.patch.liger() is patch
        for call, truth in zip(calls, truths, strict=True):
            require_near([by_ours(call)], [truth])
    for call, truth in zip(calls, truths, strict=True):
        assert torch.equal(call(), truth)


def _over_the_logits(rank: int) -> None:
    """Liger overwrites the logits with the gradient in forward, ours does in backward, if the logits are contiguous."""
    liger = functional()
    target = problem()[3]
    for logits in (
        torch.randn(ROWS, VOCAB, requires_grad=True) * 1,
        torch.randn(VOCAB, ROWS, requires_grad=True).t() * 1,
    ):
        with npu_ce_jit.patch.liger():
            loss = liger.liger_cross_entropy(logits, target)
        before = logits.detach().clone()
        loss.backward()
        assert torch.equal(logits.detach(), before) != logits.is_contiguous()


def _nothing_to_count(rank: int) -> None:
    liger = functional()
    hidden, weight, bias, target = problem()
    target[:] = -100

    def call() -> list[Tensor | None]:
        return results(liger.liger_fused_linear_cross_entropy(hidden, weight, target, bias), hidden, weight, bias)

    logits = torch.randn(ROWS, VOCAB, requires_grad=True)
    with npu_ce_jit.patch.liger():
        found = [*by_ours(call), *results(liger.liger_cross_entropy(logits * 1, target), logits)]
    assert [one.count_nonzero().item() for one in found if one is not None] == [0] * 6


def _a_model_trains_the_same(rank: int) -> tuple[list[float], list[float]]:
    """Losses of 20 steps of a tiny Llama, as Liger patches it."""
    functional()
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers import LlamaConfig, LlamaForCausalLM

    apply_liger_kernel_to_llama(rope=False, rms_norm=False, swiglu=False)

    def losses() -> list[float]:
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
            )
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        tokens = torch.randint(VOCAB, (2, 9))
        history = []
        for _ in range(20):
            loss = model(input_ids=tokens, labels=tokens).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    theirs = losses()
    with npu_ce_jit.patch.liger():
        ours = by_ours(losses)
    return theirs, ours


@pytest.mark.parametrize(
    "task", [_of_hidden_states, _of_logits, _its_modules_and_dispatcher, _over_the_logits, _nothing_to_count]
)
def test_what_liger_answers(task: Any) -> None:
    run_on_ranks(1, task)


@needs_frameworks("transformers")
def test_a_model_trains_the_same() -> None:
    ((theirs, ours),) = run_on_ranks(1, _a_model_trains_the_same)
    assert theirs[0] - theirs[-1] > 1
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("use_token_scaling", [False, True])
def test_softcap_and_class_weights(use_token_scaling: bool) -> None:
    """Triton's interpreter cannot run these; the truth is the formula of liger_kernel/ops/cross_entropy.py, 0.8.5."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    hidden, weight, bias, target = problem()
    ce_weight, counted = torch.rand(VOCAB) + 0.5, target != -100
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    logits = 5 * (F.linear(*exact) / 5).tanh()
    scale = logits.softmax(-1).gather(-1, target.clamp(0)[:, None])[:, 0].detach() * counted
    scale = scale if use_token_scaling else counted
    ce = F.cross_entropy(logits, target, ce_weight.double(), reduction="none") * scale
    z_loss = 1e-2 * logits.logsumexp(-1) ** 2 * scale
    z_mean = z_loss.sum() / counted.sum()
    truth = [ce.sum() / ce_weight[target[counted]].sum() + z_mean, z_mean]
    with npu_ce_jit.patch.liger():
        found = liger_fused_linear_cross_entropy(
            hidden, weight, target, bias, ce_weight, lse_square_scale=1e-2, softcap=5.0, return_z_loss=True,
            use_token_scaling=use_token_scaling,
        )  # fmt: skip
    require_near([found.loss, found.z_loss], truth)  # type: ignore[arg-type]
    require_near(
        list(torch.autograd.grad(found.loss, (hidden, weight, bias))), list(torch.autograd.grad(truth[0], exact))
    )


def test_halves_and_what_is_not_followed() -> None:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    hidden, weight, _, target = problem(torch.bfloat16)
    with npu_ce_jit.patch.liger():
        loss = liger_fused_linear_cross_entropy(hidden, weight, target)
        assert loss.dtype is torch.float32
        with pytest.warns(RuntimeWarning, match="expected accum_dtype None or torch.bfloat16"):
            liger_fused_linear_cross_entropy(hidden, weight, target, accum_dtype=torch.float32)


def test_the_implementation_for_an_npu_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the signature of liger_kernel/ops/backends/_ascend/ops/fused_linear_cross_entropy.py, 0.8.5."""
    import liger_kernel.ops as ops
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Default

    class LigerFusedLinearCrossEntropyFunction(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, _input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0,
            label_smoothing=0.0, reduction="mean", softcap=None, return_z_loss=False, accum_dtype=None,
            use_token_scaling=False, return_token_accuracy=False, return_predicted_tokens=False, ce_impl=None,
            ce_mode=None,
        ) -> None: ...  # fmt: skip

    monkeypatch.setattr(ops, "LigerFusedLinearCrossEntropyFunction", LigerFusedLinearCrossEntropyFunction)
    hidden, weight, bias, target = problem()
    with npu_ce_jit.patch.liger():
        for function in (LigerFusedLinearCrossEntropyFunction, Default):
            loss = by_ours(lambda: function.apply(hidden, weight, target, bias)[0])  # noqa: B023
            torch.testing.assert_close(loss, F.cross_entropy(F.linear(hidden, weight, bias), target))


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "triton" else find(name, *a))
    with pytest.raises(PatchError, match=r"expected Triton, .* got none.*npu_ce_jit.patch.transformers\(model\)"):
        npu_ce_jit.patch.liger()


def test_another_liger_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import liger_kernel.ops as ops

    class LigerCrossEntropyFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor, labels: Tensor) -> None: ...

    monkeypatch.setattr(ops, "LigerCrossEntropyFunction", LigerCrossEntropyFunction)
    with pytest.raises(PatchError, match=r"as liger_kernel .* got LigerCrossEntropyFunction.forward\(ctx, logits, lab"):
        npu_ce_jit.patch.liger()
    assert "apply" not in vars(sys.modules["liger_kernel.ops.cross_entropy"].LigerCrossEntropyFunction)
