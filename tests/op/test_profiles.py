# SPDX-License-Identifier: Apache-2.0
"""How torch's profiler and flop counter show the three forms."""

from __future__ import annotations

import pytest
import torch
from forms import FORMS, OPS, gradients, operands, theirs
from test_registration import run
from torch.utils.flop_counter import FlopCounterMode

from npu_ce_jit import linear_cross_entropy
from npu_ce_jit.op import schema


@pytest.mark.feature("torch.profiler")
@pytest.mark.parametrize("form", FORMS)
def test_names_in_a_profile(form: str, device: torch.device) -> None:
    tensors = [t.to(device) for t in operands(dtype=torch.float32)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        gradients(FORMS[form].loss, *tensors)
    events = profile.events()
    ours = [event for event in events if event.name.startswith("npu_ce_jit::")]
    outermost = [event.name for event in ours if not any(parent in ours for parent in ancestors(event))]
    public = FORMS[form].public.name()
    # In backward, the operator of autograd's node; the linear form has computed the gradients in forward.
    assert outermost == ([public] if form == "linear" else [public, "npu_ce_jit::_backward"])
    assert [e.name for e in events].count(FORMS[form].node) == 1
    leaf = tensors[0].clone().requires_grad_()
    loss = FORMS[form].loss(leaf, *tensors[1:])  # kept: before 2.8, a node loses its data once its tensor is freed
    assert FORMS[form].node in (loss.grad_fn.name(), loss.grad_fn.next_functions[0][0].name())


def ancestors(event: torch.autograd.profiler_util.FunctionEvent) -> list[torch.autograd.profiler_util.FunctionEvent]:
    parents = []
    while event.cpu_parent is not None:
        event = event.cpu_parent
        parents.append(event)
    return parents


@pytest.mark.feature("torch.utils.flop_counter")
@pytest.mark.parametrize("form", FORMS)
def test_flops_are_those_of_the_layer(form: str) -> None:
    """On the CPU: torch_npu's layers are other operators, for which the counter has no formulas."""
    tensors = operands(dtype=torch.float32)
    counts = []
    for loss in (FORMS[form].loss, theirs):
        with FlopCounterMode(display=False) as counter:
            gradients(loss, *tensors)
        counts.append(counter.get_total_flops())
        with torch.inference_mode(), counter:
            loss(*tensors)
        counts.append(counter.get_total_flops())
        if loss is not theirs:
            ours = [op for op in counter.get_flop_counts()["Global"] if "npu_ce_jit" in str(op)]
            assert ours == [getattr(OPS, FORMS[form].public.name().removeprefix("npu_ce_jit::"))]
    rows, features, classes = 7, 5, 11
    assert counts == [3 * 2 * rows * features * classes, 2 * rows * features * classes] * 2


def test_logits_that_backward_makes_again_are_counted_again() -> None:
    hidden, head, target, _ = operands(dtype=torch.float32)
    product = 2 * 7 * 5 * 11
    head.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        loss = linear_cross_entropy(hidden, head, target, reduction="none")
    assert counter.get_total_flops() == product
    with counter:
        loss.sum().backward()
    assert counter.get_total_flops() == 2 * product, "the logits, and the gradient of the head alone"


COUNTS = """
import sys, torch, npu_ce_jit
assert "torch.utils.flop_counter" not in sys.modules and "npu_ce_jit.op.tracing.flops" not in sys.modules
before = list(sys.meta_path)
from torch.utils.flop_counter import FlopCounterMode, flop_registry
assert len(sys.meta_path) == len(before) - 1
import inspect, torch.utils.flop_counter as module
assert "class FlopCounterMode" in inspect.getsource(module)
print(*sorted(str(op) for op in flop_registry if "npu_ce_jit" in str(op)))
for name in [name for name in sys.modules if name.startswith("npu_ce_jit")]:
    del sys.modules[name]
import npu_ce_jit
x, w = torch.randn(4, 3), torch.randn(9, 3)
with FlopCounterMode(display=False) as counter:
    npu_ce_jit.linear_cross_entropy(x, w, torch.zeros(4, dtype=torch.int64))
print(counter.get_total_flops())
"""


def test_whoever_counts_flops_finds_the_formulas(tmp_path) -> None:
    """Also after the package was imported anew. The import alone does not load the counter."""
    names, flops = run(COUNTS, tmp_path).splitlines()
    assert names.split() == sorted(f"npu_ce_jit.{name}" for name in schema.SCHEMAS)
    assert int(flops) == 2 * 4 * 3 * 9
