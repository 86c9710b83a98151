# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing of the three forms: both kinds, and selective, with our operators in the policy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from forms import FORMS, gradients, operands, theirs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


class Calls(TorchDispatchMode):
    """Counts the operators that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[Any] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[op] += 1
        return op(*args, **(kwargs or {}))


def close(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close([t.cpu() for t in ours], list(expected))


@pytest.mark.feature("activation checkpointing")
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("form", FORMS)
def test_both_kinds(form: str, reentrant: bool, device: torch.device) -> None:
    tensors = operands(dtype=torch.float32)
    leaves = [t.to(device, copy=True).requires_grad_() for t in tensors[:2]]
    there = [t.to(device) for t in tensors[2:]]
    with Calls() as calls:
        loss = checkpoint(FORMS[form].loss, *leaves, *there, use_reentrant=reentrant)
        loss.backward()
    close((loss.detach(), *(leaf.grad for leaf in leaves)), gradients(theirs, *tensors))
    assert calls.of[FORMS[form].internal] == 2


@pytest.mark.feature("selective activation checkpointing")
@pytest.mark.parametrize(
    ("policy", "forwards"), [(CheckpointPolicy.MUST_SAVE, 1), (CheckpointPolicy.MUST_RECOMPUTE, 2)], ids=str
)
@pytest.mark.parametrize("form", FORMS)
def test_a_policy_sees_one_operator_of_each_form(
    form: str, policy: CheckpointPolicy, forwards: int, device: torch.device
) -> None:
    tensors = operands(dtype=torch.float32)
    leaves = [t.to(device, copy=True).requires_grad_() for t in tensors[:2]]
    there = [t.to(device) for t in tensors[2:]]
    seen = []

    def decide(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if not context.is_recompute:
            seen.append(op)
        return policy if op == FORMS[form].internal else CheckpointPolicy.PREFER_RECOMPUTE

    with Calls() as calls:
        loss = checkpoint(
            FORMS[form].loss, *leaves, *there, use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(decide),
        )  # fmt: skip
        loss.backward()
    close((loss.detach(), *(leaf.grad for leaf in leaves)), gradients(theirs, *tensors))
    assert [op for op in seen if op.namespace == "npu_ce_jit"] == [FORMS[form].internal]
    assert calls.of[FORMS[form].internal] == forwards
    assert "aten.alias.default" not in map(str, seen), "what we ask of a tensor for ourselves is no part of the step"


@pytest.mark.feature("selective activation checkpointing")
@pytest.mark.parametrize("form", FORMS)
def test_a_list_of_operators_to_save(form: str) -> None:
    tensors = operands(dtype=torch.float32)
    leaves = [t.clone().requires_grad_() for t in tensors[:2]]
    compiled = torch.compile(FORMS[form].loss, backend="aot_eager", fullgraph=True)
    for loss in (FORMS[form].loss, compiled):
        value = checkpoint(
            loss, *leaves, *tensors[2:], use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts([FORMS[form].internal]),
        )  # fmt: skip
        close((value.detach(), *torch.autograd.grad(value, leaves)), gradients(theirs, *tensors))
