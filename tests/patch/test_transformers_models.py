# SPDX-License-Identifier: Apache-2.0
"""A patched model of transformers trains like the unpatched one, whose results are the truth here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from frameworks import KINDS, ROWS, batch, gradients, losses_of_steps, pair, require_close, tiny
from probes import needs_frameworks
from switch_tools import by_ours
from torch import Tensor, nn

import npu_ce_jit
from npu_ce_jit.bench.timing import peak_allocated
from npu_ce_jit.errors import PatchError
from npu_ce_jit.patch.deferred_logits import DeferredLogits

pytestmark = needs_frameworks("transformers")


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_the_gradients_are_theirs(kind: str) -> None:
    theirs, ours = pair(kind)
    inputs = batch()
    expected = gradients(theirs, lambda: theirs(**inputs).loss)
    found = by_ours(lambda: gradients(ours, lambda: ours(**inputs).loss))
    require_close(found[:1], expected[:1], 1e-6)
    require_close(found, expected, 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_are_as_near_to_the_truth_as_theirs(kind: str) -> None:
    theirs, ours = pair(kind, torch.bfloat16)
    exact = tiny(kind, torch.bfloat16).double()
    inputs = batch()
    truth, expected, found = (gradients(m, lambda m=m: m(**inputs).loss) for m in (exact, theirs, ours))
    assert found[0].dtype == torch.float32
    assert len(found) == len(expected) == len(truth)
    # Over all parameters together: in a vector of twelve elements, the layers' rounding is a matter of chance.
    their_errors, our_errors = (
        torch.stack([(x.double() - true.double()).norm() / true.norm() for x, true in zip(values, truth, strict=True)])
        for values in (expected, found)
    )
    assert our_errors.norm() <= 1.1 * their_errors.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_lie_on_theirs(kind: str, dtype: torch.dtype) -> None:
    theirs, ours = pair(kind, dtype)
    expected = losses_of_steps(theirs)
    assert expected[-1] < 0.9 * expected[0]
    assert losses_of_steps(ours) == pytest.approx(expected, rel=2e-6 if dtype is torch.float32 else 5e-3)


@pytest.mark.parametrize("items", [None, 29, torch.tensor(29)], ids=repr)
def test_what_a_loss_is_divided_by_and_which_labels_count(items: Any) -> None:
    theirs, ours = pair()
    inputs = batch()
    labels = inputs["labels"]
    shifted = torch.cat((labels[:, 1:], labels.new_full((ROWS, 1), -100)), 1)
    calls: list[dict[str, Any]] = [
        {},
        {"labels": labels, "shift_labels": shifted.roll(1, 0)},
        {"labels": labels.masked_fill(labels == -100, 7), "ignore_index": 7},
        {"labels": labels.new_full(labels.shape, -100)},
        {"labels": labels[:, -5:], "logits_to_keep": 5},
        {"return_dict": False},
    ]
    for more in calls:
        found, expected = (model(**{**inputs, "num_items_in_batch": items, **more})[0] for model in (ours, theirs))
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_options_are_those_of_the_loss() -> None:
    inputs = batch()
    options = {"label_smoothing": 0.1, "z_loss": 1e-3}
    theirs, ours = pair("gemma2, softcap", **options)
    expected = npu_ce_jit.causal_lm_loss(theirs(**inputs), inputs["labels"], **options)
    torch.testing.assert_close(ours(**inputs).loss, expected)


def test_undone_it_is_as_before() -> None:
    model = tiny()
    head = model.get_output_embeddings()
    before = [{**vars(one)} for one in (model, head)]
    plain, penalised = (npu_ce_jit.patch.transformers(model, z_loss=z) for z in (0.0, 0.1))
    assert npu_ce_jit.patch.transformers(model) is not penalised
    assert plain.is_in_effect()
    assert penalised.is_in_effect()
    expected = tiny()(**batch()).loss
    assert model(**batch()).loss > 1.001 * expected
    plain.undo()
    assert model(**batch()).loss > 1.001 * expected
    penalised.undo()
    for patch in npu_ce_jit.patch.in_effect():
        if "LlamaForCausalLM" in repr(patch):
            patch.undo()
    assert [vars(one) for one in (model, head)] == before
    assert model(**batch()).loss == expected


def test_a_copy_trains_by_itself() -> None:
    theirs, ours = pair()
    copied = copy.deepcopy(ours)
    assert losses_of_steps(copied, 3) == pytest.approx(losses_of_steps(theirs, 3), rel=1e-6)
    torch.testing.assert_close(ours(**batch()).loss, tiny()(**batch()).loss)


@pytest.mark.parametrize("whole", [False, True], ids=["", "fullgraph"])
def test_a_compiled_model(whole: bool) -> None:
    theirs, ours = pair("gemma2, softcap")
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=whole)
    inputs = {**batch(), "use_cache": False}
    expected = gradients(theirs, lambda: theirs(**inputs).loss)
    with torch.profiler.profile() as profile:
        require_close(gradients(ours, lambda: compiled(**inputs).loss), expected, 5e-6)
    assert "npu_ce_jit::_forward" in {event.name for event in profile.events()}
    torch.testing.assert_close(compiled(**inputs).logits + 0, theirs(**inputs).logits)


def test_activation_checkpointing() -> None:
    theirs, ours = pair()
    ours.gradient_checkpointing_enable()
    ours.train()
    expected = gradients(theirs, lambda: theirs(**batch()).loss)
    require_close(gradients(ours, lambda: ours(**batch()).loss), expected, 2e-6)


def test_a_step_takes_a_third_of_the_logits_at_most() -> None:
    """In addition to the body's memory and the head's gradient."""
    classes, inputs = 40009, batch(rows=48)
    model = tiny(dtype=torch.bfloat16, vocab_size=classes)
    model.model.embed_tokens.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def body() -> Any:
        return torch.autograd.grad(model.model(inputs["input_ids"])[0].sum(), trained, allow_unused=True)

    def step() -> Any:
        return torch.autograd.grad(model(**inputs).loss, trained)

    without = peak_allocated(body) + model.lm_head.weight.nbytes
    logits = 2 * classes * inputs["labels"].numel()
    assert peak_allocated(step) - without >= 5 * logits
    npu_ce_jit.patch.transformers(model)
    assert 0.1 * logits <= peak_allocated(step) - without <= 0.3 * logits


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_what_is_refused_and_that_nothing_is_exchanged_then() -> None:
    import transformers

    config = tiny().config
    own_loss = tiny()
    own_loss.loss_function = npu_ce_jit.causal_lm_loss
    no_head = tiny()
    no_head.set_output_embeddings(None)
    shared = tiny()
    shared._tp_size = 2
    gpt2 = tiny("gpt2, tied").config
    for model, words in (
        (Wrapped(tiny()), r"expected a PreTrainedModel .*, got test_transformers_models.Wrapped. Pass the model as"),
        (
            own_loss,
            r"whose loss_function is transformers' ForCausalLMLoss, got npu_ce_jit.api.causal_lm.causal_lm_loss",
        ),
        (no_head, r"expected a LlamaForCausalLM with an output head, got None from its get_output_embeddings"),
        (shared, "expected a LlamaForCausalLM with a whole output head, got one that 2 ranks share"),
        (transformers.LlamaForSequenceClassification(config), "whose loss_function is transformers' ForCausalLMLoss"),
        (transformers.GPT2DoubleHeadsModel(gpt2), "whose forward calls self.loss_function, got one that does not"),
    ):
        before = {**vars(model)}
        with pytest.raises(PatchError, match=words):
            npu_ce_jit.patch.transformers(model)
        assert vars(model) == before


def test_another_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.loss import loss_utils

    monkeypatch.setattr(loss_utils, "ForCausalLMLoss", lambda logits, labels: logits)
    with pytest.raises(PatchError, match=r"got ForCausalLMLoss\(logits, labels\). Nothing was exchanged. Install tran"):
        npu_ce_jit.patch.transformers(tiny())


def test_a_head_that_is_no_plain_layer_is_told_and_right() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    theirs, ours = tiny(), tiny()
    for model in (theirs, ours):
        model.get_output_embeddings().__class__ = Doubled
    with pytest.warns(
        RuntimeWarning, match=r"expected a plain nn.Linear for the output head of Llama.*Doubled: its log"
    ):
        npu_ce_jit.patch.transformers(ours)
    expected = gradients(theirs, lambda: theirs(**batch()).loss)
    require_close(by_ours(lambda: gradients(ours, lambda: ours(**batch()).loss)), expected, 2e-6)


@needs_frameworks("peft")
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
@pytest.mark.parametrize(
    ("options", "makes_logits"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["q_proj", "lm_head"]}, True),
    ],
    ids=["LoRA", "head saved", "LoRA of the head"],
)
def test_adapters_of_peft(options: dict[str, Any], makes_logits: bool) -> None:
    import peft

    theirs, ours = (peft.get_peft_model(tiny(), peft.LoraConfig(r=4, init_lora_weights=False, **options)) for _ in "ab")
    ours.load_state_dict(theirs.state_dict())
    if makes_logits:
        with pytest.warns(RuntimeWarning, match=r"got peft.tuners.lora.layer.Linear: its logits are made"):
            npu_ce_jit.patch.transformers(ours)
    else:
        npu_ce_jit.patch.transformers(ours)
    assert isinstance(ours(**batch()).logits, DeferredLogits) != makes_logits
    assert losses_of_steps(ours) == pytest.approx(losses_of_steps(theirs), rel=5e-6)
