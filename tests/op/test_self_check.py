# SPDX-License-Identifier: Apache-2.0
"""Which results the self-check accepts or rejects, and when it has no verdict. tests/on_npu has the rest."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from npu_ce_jit.errors import SelfCheckError
from npu_ce_jit.op import self_check
from npu_ce_jit.op.autograd.functions import OPS

CPU = torch.device("cpu")


class _Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} is seen by the caller's mode")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextmanager
def _default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# States that a process may be in at its first call.
STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16": lambda: _default_dtype(torch.bfloat16),
    "float64": lambda: _default_dtype(torch.float64),
    "meta": lambda: _default_device("meta"),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": _deterministic,
    "fake tensors": FakeTensorMode,
    "a mode": _Refusing,
}


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the kernels."""

    def spoil(forward: Any = OPS._forward.default, backward: Any = OPS._backward.default) -> None:
        kernels = {"_forward": forward, "_backward": backward}
        operators = {name: types.SimpleNamespace(default=kernel) for name, kernel in kernels.items()}
        monkeypatch.setattr(self_check, "OPS", types.SimpleNamespace(**operators))

    return spoil


@pytest.mark.parametrize("state", STATES)
def test_nothing_that_the_process_has_set_has_a_part_in_it(state: str) -> None:
    generator = torch.get_rng_state()
    with STATES[state]():
        self_check.run(CPU)
    assert torch.equal(torch.get_rng_state(), generator), "the global generator stays where it was"


def test_nor_does_a_transform_that_the_first_call_is_in(spoiled: Callable[..., None]) -> None:
    def looked_at(x: torch.Tensor) -> torch.Tensor:
        self_check.run(CPU)
        return x.sum()

    assert torch.func.grad(looked_at)(torch.ones(3)).tolist() == [1] * 3
    assert torch.func.vmap(looked_at)(torch.ones(2, 3)).tolist() == [3] * 2


@pytest.mark.parametrize(
    ("result", "spoil", "said"),
    [
        (0, lambda loss: loss * 0, r"expected loss\[0\] = \d.*, got 0, of 1001 x 37 logits"),
        (0, lambda loss: loss + torch.nan, r"expected loss\[0\] = \d.*, got nan"),
        (1, lambda z_loss: z_loss * 1.001, r"expected z_loss\[0\] = \d"),
        (2, lambda log_prob: log_prob + 0.01, r"expected log_prob\[0, 0\] = -\d"),
        (3, lambda lse: lse.roll(1), r"expected lse\[0\] = \d.*, got \d"),
        (4, lambda argmax: argmax + 1, r"expected argmax\[0\] = \d+, got \d+"),
        (5, lambda entropy: entropy[:-1], r"expected entropy of torch.float32 and \[1001\], got .* \[1000\]"),
        (6, lambda row_stats: row_stats.flip(0), r"expected row_stats\[0, 0\] = \d"),
        (7, lambda sums: sums.double(), r"expected denominators of torch.float32 and \[2\], got torch.float64"),
    ],
    ids=["loss", "nan", "z_loss", "log_prob", "lse", "argmax", "entropy", "row_stats", "denominators"],
)  # fmt: skip
def test_the_self_check_tells_what_it_expected_and_what_came(
    spoiled: Callable[..., None], result: int, spoil: Callable[..., Any], said: str
) -> None:
    def forward(*arguments: Any) -> Any:
        results = list(OPS._forward.default(*arguments))
        results[result] = spoil(results[result])
        return tuple(results)

    spoiled(forward=forward)
    with pytest.raises(SelfCheckError, match=rf"The CPU kernels fail their self-check in float32: {said}"):
        self_check.run(CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_self_check_looks_at_every_element_of_the_gradient(
    spoiled: Callable[..., None], dtype: torch.dtype
) -> None:
    def backward(*arguments: Any) -> Any:
        gradient = OPS._backward.default(*arguments)
        if gradient.dtype == dtype and gradient.shape == (3, 40009):
            gradient[2, 40008] *= 1.5
        return gradient

    spoiled(backward=backward)
    with pytest.raises(SelfCheckError, match=r"expected gradient\[2, 40008\] = .* of 3 x 40009 logits"):
        self_check.run(CPU)


def test_backward_is_judged_apart_from_what_forward_left_it(spoiled: Callable[..., None]) -> None:
    def forward(*arguments: Any) -> Any:
        *results, denominators = OPS._forward.default(*arguments)
        return *results, denominators * 2

    spoiled(forward=forward)
    with pytest.raises(SelfCheckError, match=r"expected denominators\[0\] = "):
        self_check.run(CPU)


@pytest.mark.parametrize(
    ("raised", "reported"),
    [
        (RuntimeError("a kernel that throws"), SelfCheckError),
        (torch.OutOfMemoryError("the memory is full"), torch.OutOfMemoryError),
        (TypeError("a fault in Python"), TypeError),
    ],
    ids=lambda given: given.__name__ if isinstance(given, type) else type(given).__name__,
)
def test_an_error_is_a_verdict_only_where_it_is_the_kernels(
    spoiled: Callable[..., None], raised: Exception, reported: type[Exception]
) -> None:
    def forward(*_: Any) -> Any:
        raise raised

    spoiled(forward=forward)
    with pytest.raises(reported, match=str(raised)):
        self_check.run(CPU)
