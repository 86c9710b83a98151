# SPDX-License-Identifier: Apache-2.0
"""trl's scores, patched: at most as far from float64 as trl's own, and the same losses in its trainers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import LENGTH, batch, gradients, tiny
from probes import needs_frameworks
from switch_tools import runs_ours
from torch import Tensor
from word_tokenizer import text, word_tokenizer

import npu_ce_jit
from npu_ce_jit.errors import PatchError

pytestmark = needs_frameworks("trl")
ROWS, CLASSES, FEATURES = 37, 1003, 24
OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
TEMPERATURE, SCALE = 0.7, 1.3


def layer(dtype: torch.dtype, has_bias: bool) -> tuple[list[Tensor], Tensor]:
    """hidden, weight and bias; and targets of which some are the argmax."""
    hidden, weight, bias = torch.randn(ROWS, FEATURES), torch.randn(CLASSES, FEATURES) / 2, torch.randn(CLASSES)
    tensors = [t.to(dtype) for t in (hidden, weight, bias)[: 3 if has_bias else 2]]
    target = torch.randint(CLASSES, (ROWS,))
    scores = tensors[0].double() @ tensors[1].double().T + (tensors[2].double() if has_bias else 0.0)
    target[::3] = scores.argmax(-1)[::3]
    return tensors, target


def scored(tensors: list[Tensor], target: Tensor, cap: float | None, outputs: tuple[str, ...]) -> list[Tensor | None]:
    """trl's five outputs, and the gradients of a loss over the two differentiable ones."""
    from trl.kernels import ChunkedLogProbFunction

    leaves = [t.clone().requires_grad_() for t in tensors]
    hidden, weight, bias = (*leaves, None)[:3]
    found = ChunkedLogProbFunction.apply(hidden, weight, bias, target, TEMPERATURE, 300, cap, SCALE, outputs)
    return [*found, *torch.autograd.grad(of_scores(found), leaves)]


def written_out(tensors: list[Tensor], target: Tensor, cap: float | None) -> list[Tensor]:
    """The same outputs and gradients in float64, by definition."""
    leaves = [t.double().requires_grad_() for t in tensors]
    hidden, weight, bias = (*leaves, torch.zeros(CLASSES))[:3]
    z = SCALE * (hidden @ weight.T + bias)
    z = (z if cap is None else cap * torch.tanh(z / cap)) / TEMPERATURE
    log_p = z.log_softmax(-1)
    log_probs = log_p.gather(-1, target[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    others = [(2 * log_p).logsumexp(-1), z.mean(-1), z.argmax(-1) == target]
    return [log_probs, entropy, *others, *torch.autograd.grad(of_scores([log_probs, entropy]), leaves)]


def of_scores(found: Any) -> Tensor:
    weights = torch.linspace(-1, 2, ROWS)
    loss = (found[0] * weights).sum()
    return loss if found[1] is None else loss + (found[1] * weights.flip(0)).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_every_output_is_as_near_to_the_truth_as_trls(has_bias: bool, cap: float | None, dtype: torch.dtype) -> None:
    tensors, target = layer(dtype, has_bias)
    theirs, exact = scored(tensors, target, cap, OUTPUTS), written_out(tensors, target, cap)
    with npu_ce_jit.patch.trl():
        ours, is_ours = runs_ours(lambda: scored(tensors, target, cap, OUTPUTS))
    assert is_ours
    for one, other, true in zip(ours, theirs, exact, strict=True):
        assert one is not None
        assert other is not None
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        errors = [(t.double() - true.double()).norm() for t in (one, other)]
        assert errors[0] <= 1.2 * errors[1] + 1e-6 * true.double().norm()


@pytest.mark.parametrize("outputs", [c for n in range(5) for c in itertools.combinations(OUTPUTS, n)], ids=str)
def test_what_is_not_asked_is_none(outputs: tuple[str, ...]) -> None:
    tensors, target = layer(torch.float32, False)
    theirs = scored(tensors, target, None, outputs)
    with npu_ce_jit.patch.trl():
        ours = scored(tensors, target, None, outputs)
    assert [one is None for one in ours] == [other is None for other in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("widened", [False, True], ids=["autocast", "float32 head"])
def test_dtypes_that_differ_are_cast_as_trl_casts_them(widened: bool) -> None:
    tensors, target = layer(torch.float32, False)
    if widened:
        tensors[1] = tensors[1].bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=not widened):
        theirs = scored(tensors, target, None, ("entropy",))
        with npu_ce_jit.patch.trl():
            ours = scored(tensors, target, None, ("entropy",))
    for index in (0, 1, 5, 6):
        one, other = ours[index], theirs[index]
        assert one is not None
        assert other is not None
        assert one.dtype == other.dtype
        assert (one - other).norm() <= (2e-6 if widened and index != 6 else 1e-2) * other.norm()


@pytest.mark.parametrize("kind", ["llama", "gemma2, softcap", "granite, logits_scaling", "mixtral, router loss"])
def test_a_fused_head_gives_the_same_loss(kind: str) -> None:
    from trl.trainer.utils import add_fused_lm_head

    model = tiny(kind)
    add_fused_lm_head(model, temperature=TEMPERATURE, outputs=("log_probs", *OUTPUTS))
    inputs = {**batch(), "fused_lm_head": True}
    theirs, expected = model(**inputs), gradients(model, lambda: model(**inputs).loss)
    with npu_ce_jit.patch.trl():
        ours, found = model(**inputs), gradients(model, lambda: model(**inputs).loss)
        nothing = gradients(model, lambda: model(**{**inputs, "labels": inputs["labels"] * 0 - 100}).loss)
    for one, other in zip((*ours.values(), *found), (*theirs.values(), *expected), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
    assert kind == "mixtral, router loss" or not any(g.any() for g in nothing)


def test_positions_that_do_not_count_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer.utils import add_fused_lm_head

    model, rows = tiny(), []

    def counts(hidden: Tensor, *arguments: Any, **options: Any) -> Any:
        rows.append(len(hidden))
        return npu_ce_jit.linear_cross_entropy(hidden, *arguments, **options)

    monkeypatch.setattr("npu_ce_jit.patch.trl_scores.linear_cross_entropy", counts)
    add_fused_lm_head(model)
    with npu_ce_jit.patch.trl():
        model(**batch(), fused_lm_head=True)
    assert rows == [int((batch()["labels"][:, 1:] != -100).sum())]


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@needs_frameworks("datasets", "accelerate")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_twenty_steps_of_a_trainer(kind: str, tmp_path: Path) -> None:
    import trl
    from datasets import Dataset

    ids = torch.cat([batch(seed=seed)["input_ids"] for seed in range(14)])
    if kind == "SFT":
        data = {"text": [text(row) for row in ids]}
    else:
        data = {"prompt": [text(r[:5]) for r in ids], "chosen": [text(r[5:]) for r in ids],
                "rejected": [text(r[5:].flip(0)) for r in ids]}  # fmt: skip
    found = []
    for patched in (False, True):
        options = getattr(trl, f"{kind}Config")(
            output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=4, logging_steps=1, report_to=[],
            save_strategy="no", use_cpu=True, bf16=False, learning_rate=1e-2, max_length=LENGTH, disable_tqdm=True,
            gradient_checkpointing=False,
        )  # fmt: skip
        trainer = getattr(trl, f"{kind}Trainer")(
            model=tiny(), args=options, train_dataset=Dataset.from_dict(data), processing_class=word_tokenizer(),
            **({} if kind == "SFT" else {"ref_model": tiny()}),
        )  # fmt: skip
        if patched:
            with npu_ce_jit.patch.trl(), torch.profiler.profile() as profile:
                found.append(losses(trainer))
            assert "npu_ce_jit::_linear" in {event.name for event in profile.events()}
        else:
            found.append(losses(trainer))
    assert len(found[0]) == 20
    assert found[0][-1] < 0.9 * found[0][0]
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_head_that_zero_3_takes_apart_stays_trls() -> None:
    tensors, target = layer(torch.float32, False)
    from trl.kernels import ChunkedLogProbFunction

    tensors[1].ds_id = 1  # type: ignore[attr-defined]
    arguments = (*tensors, None, target, 1.0, 300)
    expected = ChunkedLogProbFunction.apply(*arguments)
    with npu_ce_jit.patch.trl(), pytest.warns(RuntimeWarning, match="that ZeRO-3 takes apart: trl's own function"):
        found, is_ours = runs_ours(lambda: ChunkedLogProbFunction.apply(*arguments))
    assert not is_ours
    torch.testing.assert_close(found, expected)


def test_undone_it_is_as_before() -> None:
    import trl.trainer.utils as utils
    from trl.kernels import ChunkedLogProbFunction

    before, scores = utils._use_triton, {**vars(ChunkedLogProbFunction)}
    first, second = npu_ce_jit.patch.trl(), npu_ce_jit.patch.trl()
    assert first is second
    assert first.is_in_effect()
    first.undo()
    assert utils._use_triton is before
    assert vars(ChunkedLogProbFunction) == scores


def test_another_trl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.kernels import chunked_logprob

    function = chunked_logprob.ChunkedLogProbFunction
    with monkeypatch.context() as patched:
        patched.setattr(chunked_logprob, "OPTIONAL_OUTPUTS", ("entropy", "is_top1"))
        with pytest.raises(
            PatchError, match=r"with the outputs \('entropy', 'log_sum.*got .* with \('entropy', 'is_top1"
        ):
            npu_ce_jit.patch.trl()
    monkeypatch.setattr(function, "forward", staticmethod(lambda ctx, hidden, weight: hidden))
    with pytest.raises(
        PatchError, match=r"got ChunkedLogProbFunction.forward\(ctx, hidden, weight\). Nothing was exch"
    ):
        npu_ce_jit.patch.trl()
    assert not any("trl" in repr(patch) for patch in npu_ce_jit.patch.in_effect())
