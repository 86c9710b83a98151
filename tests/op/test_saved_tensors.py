# SPDX-License-Identifier: Apache-2.0
"""Tensors that are emptied, freed or changed between forward and backward: the error names the tensor and the cause."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import Options, truth
from ranks import run_on_ranks
from torch import Tensor

from npu_ce_jit import cross_entropy, linear_cross_entropy, npu_cross_entropy_loss

Tensors = dict[str, Tensor]


def layer(dtype: torch.dtype) -> Tensors:
    return {
        "input": torch.randn(7, 5).to(dtype).requires_grad_(),
        "linear_weight": torch.randn(11, 5).to(dtype).requires_grad_(),
        "linear_bias": torch.randn(11).to(dtype).requires_grad_(),
        "target": torch.randint(11, (7,)),
        "weight": torch.rand(11) + 0.1,
    }


def logits(dtype: torch.dtype) -> Tensors:
    tensors = layer(dtype)
    return {"input": torch.randn(7, 11).to(dtype).requires_grad_()} | {n: tensors[n] for n in ("target", "weight")}


def drop_in(**arguments: Any) -> Tensor:
    return npu_cross_entropy_loss(**arguments)[0]


# Losses whose backward reads all of these tensors again.
FORMS: dict[str, tuple[Callable[..., Any], Callable[[torch.dtype], Tensors], torch.dtype, str]] = {
    "linear, none": (linear_cross_entropy, layer, torch.float32, "none"),
    "linear, float16": (linear_cross_entropy, layer, torch.float16, "mean"),
    "cross_entropy": (cross_entropy, logits, torch.float32, "mean"),
    "cross_entropy, none": (cross_entropy, logits, torch.float16, "none"),
    "drop-in": (drop_in, logits, torch.float32, "sum"),
}
CASES = [(form, name) for form, (_, make, _, _) in FORMS.items() for name in make(torch.float32)]
of_every_tensor = pytest.mark.parametrize(("form", "name"), CASES)


def stepped(form: str) -> tuple[Tensor, Tensors]:
    function, make, dtype, reduction = FORMS[form]
    tensors = make(dtype)
    return function(**tensors, reduction=reduction).sum(), tensors


def gradients(loss: Tensor, tensors: Tensors, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [t for t in tensors.values() if t.requires_grad], **options)


@of_every_tensor
def test_what_was_emptied_is_named_with_what_it_was(form: str, name: str) -> None:
    """ZeRO-3 empties parameters by `.data =`, which no version counter notices."""
    loss, tensors = stepped(form)
    shape = list(tensors[name].shape)
    tensors[name].data = tensors[name].new_empty(0)
    said = rf"{name} was {re.escape(str(shape))} in forward, now \[0\]; .*GatheredParameters"
    for options in ({}, {"create_graph": True}):
        with pytest.raises(RuntimeError, match=said):
            gradients(loss, tensors, retain_graph=True, **options)


@pytest.mark.parametrize("name", layer(torch.float32))
def test_in_a_second_derivative_too(name: str) -> None:
    tensors = layer(torch.float32)
    loss = linear_cross_entropy(**tensors)
    tensors[name].data = tensors[name].new_empty(0)
    with pytest.raises(RuntimeError, match=rf"{name} was .* now \[0\]; .* \"mean\" and \"sum\" read nothing again"):
        gradients(loss, tensors, create_graph=True)
    of_logits = logits(torch.float32)
    (first,) = gradients(cross_entropy(**of_logits), of_logits, create_graph=True)
    if name in of_logits:
        of_logits[name].data = of_logits[name].new_empty(0)
        with pytest.raises(RuntimeError, match=rf"{name} was .* now \[0\]"):
            gradients((first * first).sum(), of_logits)


def check_group(rank: int) -> None:
    from npu_ce_jit import parallel

    for function, make, names in (
        (parallel.vocab_parallel_cross_entropy, logits, {"input": "local_logits"}),
        (
            parallel.vocab_parallel_linear_cross_entropy, layer,
            {"linear_weight": "local_linear_weight", "linear_bias": "local_linear_bias"},
        ),
    ):  # fmt: skip
        for name in make(torch.float32):
            tensors = make(torch.float32)
            loss = function(**{names.get(n, n): t for n, t in tensors.items()}, reduction="none").sum()
            shape = list(tensors[name].shape)
            tensors[name].data = tensors[name].new_empty(0)
            said = rf"{names.get(name, name)} was {re.escape(str(shape))} in forward, now \[0\]"
            with pytest.raises(RuntimeError, match=said):
                gradients(loss, tensors)


def test_where_a_group_shares_the_classes_too():
    run_on_ranks(1, check_group)


def test_another_dtype_is_named_too() -> None:
    loss, tensors = stepped("cross_entropy")
    tensors["weight"].data = tensors["weight"].data.double()
    with pytest.raises(RuntimeError, match=r"weight was \[11\] of float32 in forward, now \[11\] of float64"):
        gradients(loss, tensors)


def told_of_freed_storages() -> None:
    """Writes a line for each case. Runs in a process of its own, which a read of freed memory would kill."""
    for form, name in CASES:
        loss, tensors = stepped(form)
        tensors[name].untyped_storage().resize_(0)
        try:
            gradients(loss, tensors)
        except RuntimeError as error:
            sys.stdout.write(f"{form}|{name}|{error}\n")
            sys.stdout.flush()


def test_a_storage_that_was_freed_is_an_error_and_no_crash() -> None:
    """FSDP frees a storage and keeps the tensor's shape."""
    program = f"import sys; sys.path[:0] = {sys.path!r}\nimport test_saved_tensors as t"
    ran = subprocess.run(
        [sys.executable, "-c", f"{program}; t.told_of_freed_storages()"], capture_output=True, text=True, check=False
    )
    reported = [line.split("|") for line in ran.stdout.splitlines()]
    assert [(form, name) for form, name, _ in reported] == CASES, f"then it ended with {ran.returncode}: {ran.stderr}"
    for form, name, error in reported:
        who = name if form.startswith("linear") else "tensors"
        assert re.match(
            rf"expected {who} with (its|their) values, got shape \[.*\] whose storage is freed; leave", error
        )


@of_every_tensor
def test_what_was_changed_in_place_is_noticed_as_torch_notices_it(form: str, name: str) -> None:
    loss, tensors = stepped(form)
    with torch.no_grad():
        tensors[name].fill_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation: \[torch"):
        gradients(loss, tensors)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_that_forward_has_made_need_none_of_it(reduction: str) -> None:
    tensors = layer(torch.float32)
    exact = {name: t.detach().double() for name, t in tensors.items() if t.is_floating_point()}
    leaves = [exact[name].requires_grad_() for name in ("input", "linear_weight", "linear_bias")]
    whole = torch.nn.functional.linear(*leaves)
    expected = torch.autograd.grad(
        truth(whole, tensors["target"], exact["weight"], Options(reduction=reduction)).loss, leaves
    )
    for take_away in ("emptied", "freed"):
        ours = {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in tensors.items()}
        loss = linear_cross_entropy(**ours, reduction=reduction)
        for tensor in ours.values():
            if take_away == "emptied":
                tensor.data = tensor.new_empty(0)
            else:
                tensor.untyped_storage().resize_(0)
        for ours_of, exact_of in zip(gradients(loss, ours), expected, strict=True):
            torch.testing.assert_close(ours_of.double(), exact_of, rtol=1e-5, atol=1e-5)


def test_a_head_that_is_elsewhere_in_forward_already() -> None:
    tensors = layer(torch.float32)
    tensors["linear_weight"].data = torch.empty(0)
    with pytest.raises(
        RuntimeError, match=r"linear_weight of shape \[C, in_features\], got \[0\]\. .*forward of the wr"
    ):
        linear_cross_entropy(**tensors)
    tensors = layer(torch.float32)
    tensors["target"].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="expected target with its values"):
        linear_cross_entropy(**tensors)


def test_compiled_steps_are_as_they_were() -> None:
    torch._dynamo.reset()  # of a function that other tests compiled too often, no call would be compiled
    for function, make, dtype, reduction in FORMS.values():
        tensors = make(dtype)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
        results = [gradients(f(**tensors, reduction=reduction).sum(), tensors) for f in (compiled, function)]
        torch.testing.assert_close(*results)
