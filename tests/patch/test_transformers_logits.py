# SPDX-License-Identifier: Apache-2.0
"""The logits of a patched model of transformers are materialised when they are read, and are right then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frameworks import KINDS, LENGTH, ROWS, VOCAB, batch, gradients, pair, require_close, tiny
from probes import needs_frameworks
from torch import Tensor

from npu_ce_jit.patch.deferred_logits import DeferredLogits

pytestmark = needs_frameworks("transformers")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_made_when_they_are_read(kind: str) -> None:
    theirs, ours = pair(kind)
    inputs = batch()
    expected, found = theirs(**inputs), ours(**inputs)
    logits = found.logits
    assert isinstance(logits, DeferredLogits)
    assert (logits.shape, logits.dtype, logits.device) == ((ROWS, LENGTH, VOCAB), torch.float32, torch.device("cpu"))
    assert not logits.is_made()
    torch.testing.assert_close(logits + 0, expected.logits)
    assert logits.is_made()
    torch.testing.assert_close(logits.argmax(-1), expected.logits.argmax(-1))
    # With a term of the user's own, which also needs the logits' gradient.
    step = [gradients(m, lambda m=m: (o := m(**inputs)).loss + o.logits.square().mean()) for m in (ours, theirs)]
    require_close(*step, 5e-6)


def test_a_wider_copy_of_the_logits_is_not_made_before_it_is_read() -> None:
    """With mixed precision, accelerate converts a model's outputs to float32."""
    theirs, ours = pair()
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = theirs(**batch()).logits.float(), ours(**batch()).logits.float()
    assert isinstance(found, DeferredLogits)
    assert (found.dtype, found.is_made()) == (torch.float32, False)
    torch.testing.assert_close(found[:, -1], expected[:, -1])  # read outside of autocast


def test_logits_of_a_head_that_was_changed_since_are_refused() -> None:
    _, model = pair()
    outputs = model(**batch())
    outputs.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match=r"changed since: .*; read outputs.logits before the optimizer's step"):
        outputs.logits.argmax(-1)


def test_what_changes_logits_in_place_changes_the_loss() -> None:
    theirs, ours = pair()
    for model in (theirs, ours):
        forward = model.loss_function

        def masked(logits: Any, labels: Any, *, forward: Any = forward, **more: Any) -> Tensor:
            logits[..., 900:] = -torch.inf
            return forward(logits, labels, **more)

        model.loss_function = masked
    torch.testing.assert_close(ours(**batch()).loss, theirs(**batch()).loss)
    assert ours(**batch()).loss < tiny()(**batch()).loss


def test_without_labels_it_is_as_before() -> None:
    theirs, ours = pair()
    inputs = {"input_ids": batch()["input_ids"]}
    assert type(ours(**inputs).logits) is Tensor
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    torch.testing.assert_close(ours.generate(**inputs, **options), theirs.generate(**inputs, **options))


def test_a_head_that_is_whole_inside_its_module_alone() -> None:
    """As in ZeRO-3: hooks of the module gather the weight, and release it afterwards."""
    theirs, ours = pair()
    head = ours.get_output_embeddings()
    weight, gathered = head.weight.data, []
    head.weight.data = torch.empty(0)

    def gather(*_: Any) -> None:
        head.weight.data = weight
        gathered.append(1)

    def release(*_: Any) -> None:
        head.weight.data = torch.empty(0)

    head.register_forward_pre_hook(gather)
    head.register_forward_hook(release)
    outputs = ours(**batch())
    torch.testing.assert_close(outputs.loss, theirs(**batch()).loss)
    assert len(gathered) == 2, "once where the model calls it, once for the loss"
    torch.testing.assert_close(outputs.logits + 0, theirs(**batch()).logits)
