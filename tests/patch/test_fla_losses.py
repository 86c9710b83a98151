# SPDX-License-Identifier: Apache-2.0
"""flash-linear-attention's losses with the patch, against themselves without; Triton interprets their kernels."""

from __future__ import annotations

import inspect
import os
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from probes import needs_frameworks
from ranks import run_on_ranks
from switch_tools import by_ours, runs_ours
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.errors import PatchError

pytestmark = needs_frameworks("fla", "triton")

ROWS, HIDDEN, VOCAB = 13, 19, 211


def packages() -> tuple[Any, Any]:
    """The modules of the losses from logits and from hidden states; Triton's decorators read the variable."""
    os.environ["TRITON_INTERPRET"] = "1"
    from fla.modules import fused_cross_entropy, fused_linear_cross_entropy

    return fused_cross_entropy, fused_linear_cross_entropy


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, bias = (
        torch.randn(*shape, requires_grad=True) for shape in ((ROWS, HIDDEN), (VOCAB, HIDDEN), (VOCAB,))
    )
    target = torch.randint(VOCAB, (ROWS,))
    target[::5] = -100
    return hidden, weight, bias, target


def with_gradients(found: Any, *of: Tensor) -> list[Tensor]:
    outputs = [found] if isinstance(found, Tensor) else list(found)
    weights = torch.linspace(-1, 2, outputs[0].numel()).view(outputs[0].shape)
    return [*outputs, *torch.autograd.grad(outputs[0], of, weights)]


def require_near(found: list[Tensor], truth: list[Tensor]) -> None:
    for one, true in zip(found, truth, strict=True):
        assert (one.shape, one.dtype) == (true.shape, true.dtype)
        assert (one.double() - true.double()).norm() <= 3e-6 * true.double().norm()


def _of_hidden_states(rank: int) -> None:
    _, package = packages()
    for options in (
        {},
        {"label_smoothing": 0.1, "logit_scale": 0.7, "reduction": "sum"},
        {"ignore_index": 3, "num_chunks": 2, "process_group": torch.distributed.group.WORLD},
        {"use_l2warp": True, "l2_penalty_factor": 0.1},
    ):
        hidden, weight, bias, target = problem()
        target[target == -100] = options.get("ignore_index", -100)  # type: ignore[assignment]

        def call() -> list[Tensor]:
            found = package.fused_linear_cross_entropy_loss(hidden, target, weight, bias, **options)  # noqa: B023
            return with_gradients(found, hidden, weight, bias)  # noqa: B023

        truth = call()
        with npu_ce_jit.patch.fla():
            found, ours = runs_ours(call)
            assert ours != ("use_l2warp" in options)
            require_near(found, truth)
            module = package.FusedLinearCrossEntropyLoss()
            assert runs_ours(lambda: module(hidden, target.clamp(0), weight))[1]  # noqa: B023


def _of_logits(rank: int) -> None:
    package, _ = packages()
    for options in (
        {},
        {"label_smoothing": 0.1, "logit_scale": 0.7, "lse_square_scale": 1e-2},
        {"inplace_backward": True},
    ):
        hidden, weight, _, target = problem()
        logits = F.linear(hidden, weight).detach().requires_grad_()

        def call() -> list[Tensor]:
            return with_gradients(package.cross_entropy_loss(logits * 1, target, **options), logits)  # noqa: B023

        truth = call()
        with npu_ce_jit.patch.fla():
            require_near(by_ours(call), truth)
        copy = logits * 1
        with npu_ce_jit.patch.fla():
            package.cross_entropy_loss(copy, target, **options)[0].sum().backward()
        assert torch.equal(copy, logits) != ("inplace_backward" in options)


def _nothing_to_count(rank: int) -> None:
    _, package = packages()
    hidden, weight, bias, target = problem()
    target[:] = -100
    with npu_ce_jit.patch.fla():
        loss = by_ours(lambda: package.fused_linear_cross_entropy_loss(hidden, target, weight, bias))
    assert [one.count_nonzero().item() for one in with_gradients(loss, hidden, weight, bias)] == [0] * 4


@pytest.mark.parametrize("task", [_of_hidden_states, _of_logits, _nothing_to_count])
def test_what_it_answers(task: Any) -> None:
    run_on_ranks(1, task)


def _softcap(rank: int) -> None:
    """Triton's interpreter cannot run fla's softcap, so the truth is softcap * tanh(logits / softcap) in float64."""
    of_logits, of_hidden = packages()
    hidden, weight, bias, target = problem()
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    logits = 5 * (0.7 * F.linear(*exact) / 5).tanh()
    truth = torch.autograd.grad(F.cross_entropy(logits, target), exact)
    options = {"logit_softcapping": 5.0, "logit_scale": 0.7}
    with npu_ce_jit.patch.fla():
        loss = of_hidden.fused_linear_cross_entropy_loss(hidden, target, weight, bias, **options)
        rows, z_loss = of_logits.cross_entropy_loss(F.linear(hidden, weight, bias), target, **options)
    require_near(list(torch.autograd.grad(loss, (hidden, weight, bias))), [one.float() for one in truth])
    require_near([rows], [F.cross_entropy(logits, target, reduction="none").float()])
    assert z_loss.count_nonzero() == 0


def test_softcap() -> None:
    run_on_ranks(1, _softcap)


def _over_ranks(rank: int) -> None:
    """fla's collectives need NCCL or HCCL, so a stand-in with the same signature is patched."""
    for package, name in zip(packages(), ("cross_entropy_loss", "fused_linear_cross_entropy_loss"), strict=True):
        signature, module = inspect.signature(getattr(package, name)), sys.modules[f"{package.__name__}.ops"]

        def theirs(*arguments: Any) -> Any:
            return signature.bind(*arguments).arguments  # noqa: B023

        theirs.__signature__ = signature  # type: ignore[attr-defined]
        setattr(module, name, theirs)
        hidden, weight, _, target = problem()
        of = (hidden, target) if name == "cross_entropy_loss" else (hidden, target, weight)
        group = torch.distributed.group.WORLD
        with npu_ce_jit.patch.fla():
            got = getattr(module, name)(*of, label_smoothing=0.2, process_group=group)
        assert list(got) == list(signature.parameters)
        assert all(one is other for one, other in zip(got.values(), of, strict=False))
        assert (got["label_smoothing"], got["process_group"]) == (0.2, group)
        defaults = {k: p.default for k, p in signature.parameters.items() if p.default is not p.empty}
        assert {k: got[k] for k in defaults} == {**defaults, "label_smoothing": 0.2, "process_group": group}


def test_where_ranks_share_the_vocabulary_it_answers_itself() -> None:
    run_on_ranks(2, _over_ranks)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import fla.modules.fused_linear_cross_entropy.ops as ops

    monkeypatch.setattr(ops, "fused_linear_cross_entropy_loss", lambda x, target, weight: None)
    with pytest.raises(PatchError, match=r"as flash-linear-attention .*, got fused_linear_.*\(x, target, weight\)"):
        npu_ce_jit.patch.fla()
