# SPDX-License-Identifier: Apache-2.0
"""Runs the code of docs/training.md in order, on small tensors, with a stand-in for transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pages import code_of, needs_the_pages
from torch import Tensor, nn

ROWS, FEATURES, VOCAB, PADDED = 5, 6, 13, 16

pytestmark = needs_the_pages

Loss = Callable[..., Tensor]


class Trainer:
    """Calls a `compute_loss_func` like transformers' Trainer, for one batch."""

    def __init__(self, model: nn.Module, train_dataset: Tensor, compute_loss_func: Loss, **_: Any) -> None:
        labels = train_dataset
        outputs = {"logits": model(torch.randn(*labels.shape, FEATURES))}
        compute_loss_func(outputs, labels, num_items_in_batch=labels[:, 1:].ne(-100).sum()).backward()


def test_the_code_of_the_page_runs() -> None:
    head = nn.Linear(FEATURES, PADDED, bias=False)
    target = torch.randint(VOCAB, (2, ROWS))
    names: dict[str, Any] = {
        "torch": torch, "Trainer": Trainer,
        "model": head, "args": None, "dataset": target, "head": head, "target": target, "tokens": target,
        "hidden": torch.randn(2, ROWS, FEATURES), "logits": torch.randn(2, ROWS, PADDED), "vocab_size": VOCAB,
        "temperature": 0.7, "advantages": torch.randn(2, ROWS), "device_type": "cpu",
        "optimizer": torch.optim.SGD(head.parameters(), lr=0.1),
        "rows": torch.randn(4, 3), "classes": torch.tensor([0, 2, 1, -100]),
    }  # fmt: skip
    for block in code_of("training.md"):
        before = head.weight.detach().clone()
        head.zero_grad()
        exec(block, names)
        if "backward()" in block or "Trainer(" in block:
            assert head.weight.grad.any(), block
        assert ("scaler.step" in block) == (not torch.equal(before, head.weight)), block
    expected = (names["logits"] / 0.7).log_softmax(-1).gather(-1, target[..., None])[..., 0]
    torch.testing.assert_close(names["log_probs"], expected)
    assert names["model"].loss_function.__name__ == "causal_lm_loss"
    assert names["flops"] == 2 * (2 * target.numel() * FEATURES * PADDED)
    assert names["hessian"].shape == (4, 3, 4, 3)
    assert names["per_sample"].shape == (4, 3)
