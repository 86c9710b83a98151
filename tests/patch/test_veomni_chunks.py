# SPDX-License-Identifier: Apache-2.0
"""VeOmni's chunked functions with the patch, against themselves without, in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from probes import needs_import
from switch_tools import by_ours
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.errors import PatchError

pytestmark = needs_import("veomni.ops.kernels.cross_entropy")

VOCAB, HIDDEN, IGNORED = 211, 19, -7


def module() -> Any:
    import veomni.ops.kernels.cross_entropy as package

    return package


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(3, 13, HIDDEN, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCAB, (3, 13))
    labels[:, ::4] = IGNORED
    return hidden, weight, labels


def with_gradients(found: tuple[Tensor, Tensor | None], *of: Tensor) -> list[Tensor]:
    outputs = [one for one in found if one is not None]
    weights = [torch.linspace(-1, 2, one.numel()).view(one.shape).to(one) + 0.3 for one in outputs]
    return [*outputs, *torch.autograd.grad(outputs, of, weights)]


def shard_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes VeOmni expect shifted labels, and reduce the loss over ranks."""
    from veomni.ops.kernels.cross_entropy import chunk_logprobs, chunk_loss

    for one in (chunk_logprobs, chunk_loss):
        monkeypatch.setattr(one, "get_parallel_state", lambda: SimpleNamespace(sp_enabled=True))
    monkeypatch.setattr(chunk_loss, "reduce_sequence_parallel_loss", lambda loss, count: loss * count)


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "loss": ("chunk_loss_function", {"vocab_size": VOCAB}),
    "loss of few rows": ("chunk_loss_function", {"vocab_size": VOCAB, "chunk_size": 5, "num_items_in_batch": 4}),
    "logprobs": ("chunk_logprobs_function", {}),
    "logprobs at a temperature": ("chunk_logprobs_function", {"temperature": 0.7, "chunk_size": 5}),
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_what_veomni_answers(call: str, sharded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if sharded:
        shard_sequences(monkeypatch)
    name, options = CALLS[call]
    hidden, weight, labels = problem(torch.float32)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    function = getattr(module(), name)
    truth = with_gradients(function(*exact, labels, ignore_index=IGNORED, **options), *exact)
    with npu_ce_jit.patch.veomni() as patch:
        assert npu_ce_jit.patch.veomni() is patch
        ours = getattr(module(), name)
        found = by_ours(
            lambda: with_gradients(ours(hidden, weight, labels, ignore_index=IGNORED, **options), hidden, weight)
        )
    assert getattr(module(), name) is function
    for one, true in zip(found, truth, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == true.shape
        assert (one.double() - true).norm() <= 3e-6 * true.norm()


def test_labels_that_are_shifted_by_the_caller() -> None:
    hidden, weight, labels = problem(torch.float64)
    options: dict[str, Any] = {"ignore_index": IGNORED, "shift_labels": labels}
    truth = module().chunk_logprobs_function(hidden, weight, None, **options)
    with npu_ce_jit.patch.veomni():
        found = module().chunk_logprobs_function(hidden, weight, None, **options)
    for one, true in zip(found, truth, strict=True):
        torch.testing.assert_close(one.float(), true)
        assert one[labels == IGNORED].count_nonzero() == 0


def test_the_losses_that_models_have_are_reached() -> None:
    """They are in the table of transformers, where VeOmni registers its loss."""
    from transformers.loss.loss_utils import LOSS_MAPPING

    before = dict(LOSS_MAPPING)
    try:
        module().install_loss_mapping("chunk_loss")
        hidden, weight, labels = problem(torch.float32)
        given = {"labels": labels, "hidden_states": hidden, "weights": weight, "vocab_size": VOCAB, "logits": None}
        given["ignore_index"] = IGNORED
        truth = LOSS_MAPPING["ForCausalLM"](**given)[0]
        with npu_ce_jit.patch.veomni():
            torch.testing.assert_close(by_ours(lambda: LOSS_MAPPING["ForCausalLM"](**given)[0]), truth)
    finally:
        LOSS_MAPPING.clear()
        LOSS_MAPPING.update(before)


def test_another_veomni_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from veomni.ops.kernels.cross_entropy import chunk_logprobs

    monkeypatch.setattr(chunk_logprobs, "chunk_logprobs_function", lambda hidden, head: None)
    before = module().chunk_loss_function
    with pytest.raises(PatchError, match=r"as veomni .*, got chunk_logprobs_function\(hidden, head\)"):
        npu_ce_jit.patch.veomni()
    assert module().chunk_loss_function is before
