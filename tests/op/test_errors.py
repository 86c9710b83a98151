# SPDX-License-Identifier: Apache-2.0
"""The error table: a bad input raises the same type and text from the function, torch.ops, Meta and FakeTensor."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_features
from probes import needs_the_library
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import npu_ce_jit
from npu_ce_jit import (
    cross_entropy,
    linear_cross_entropy,
    npu_cross_entropy_loss,
    npu_cross_entropy_loss_backward,
)

Make = Callable[[str], dict[str, Any]]


def good(device: str = "cpu") -> dict[str, Any]:
    return {"input": torch.zeros(3, 5, device=device), "target": torch.zeros(3, dtype=torch.int64, device=device)}


def case(**changes: Callable[[str], Any]) -> Make:
    return lambda device: {**good(device), **{name: make(device) for name, make in changes.items()}}


def empty(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Callable[[str], Tensor]:
    return lambda device: torch.empty(shape, dtype=dtype, device=device, requires_grad=grad)


def value(v: object) -> Callable[[str], Any]:
    return lambda _: v


# (what is wrong, the arguments, the error's type, its text)
TABLE: list[tuple[str, Make, type[Exception], str]] = [
    ("int input", case(input=empty(3, 5, dtype=torch.int64)), NotImplementedError, "expected input of dtype float32, bfloat16, float16, or float64 except on npu, got int64 on {device}"),
    ("bool input", case(input=empty(3, 5, dtype=torch.bool)), NotImplementedError, "expected input of dtype float32, bfloat16, float16, or float64 except on npu, got bool on {device}"),
    ("complex input", case(input=empty(3, 5, dtype=torch.complex64)), NotImplementedError, "expected input of dtype float32, bfloat16, float16, or float64 except on npu, got complex64 on {device}"),
    ("float8 input", case(input=empty(3, 5, dtype=torch.float8_e4m3fn)), NotImplementedError, "expected input of dtype float32, bfloat16, float16, or float64 except on npu, got float8_e4m3fn on {device}"),
    ("float target", case(target=empty(3)), RuntimeError, "expected target of dtype int64 or int32, got float32"),
    ("bool target", case(target=empty(3, dtype=torch.bool)), RuntimeError, "expected target of dtype int64 or int32, got bool"),
    ("half weight", case(weight=empty(5, dtype=torch.float16)), RuntimeError, "expected weight of dtype float32 or input's float32, got float16"),
    ("0-d input", case(input=empty()), RuntimeError, "expected input of shape [N, C], got []"),
    ("2-d target", case(target=empty(3, 1, dtype=torch.int64)), RuntimeError, "expected target of shape [N], got [3, 1]"),
    ("2-d weight", case(weight=empty(5, 1)), RuntimeError, "expected weight of shape [C], got [5, 1]"),
    ("no classes", case(input=empty(3, 0)), RuntimeError, "expected input with at least one class, got shape [3, 0]"),
    ("batch sizes", case(target=empty(4, dtype=torch.int64)), ValueError, "expected input batch_size (3) to match target batch_size (4)"),
    ("weight size", case(weight=empty(4)), RuntimeError, "expected weight of shape [5], one for each class, got [4]"),
    ("reduction", case(reduction=value("avg")), ValueError, "expected reduction 'none', 'mean' or 'sum', got 'avg'"),
    ("smoothing above", case(label_smoothing=value(1.5)), RuntimeError, "expected label_smoothing between 0.0 and 1.0, got 1.5"),
    ("smoothing below", case(label_smoothing=value(-0.1)), RuntimeError, "expected label_smoothing between 0.0 and 1.0, got -0.1"),
    ("smoothing nan", case(label_smoothing=value(float("nan"))), RuntimeError, "expected label_smoothing between 0.0 and 1.0, got nan"),
    ("weight gradient", case(weight=empty(5, grad=True)), RuntimeError, "expected weight without requires_grad, got requires_grad=True: the loss is not differentiable with respect to weight; pass weight.detach()"),
    # Where several things are wrong: dtype before rank, rank before sizes, sizes before options, options before values.
    ("dtype first", case(input=empty(3, 5, 2, dtype=torch.int64), reduction=value("avg")), NotImplementedError, "expected input of dtype float32, bfloat16, float16, or float64 except on npu, got int64 on {device}"),
    ("sizes before options", case(weight=empty(4), reduction=value("avg")), RuntimeError, "expected weight of shape [5], one for each class, got [4]"),
    ("options before values", case(label_smoothing=value(2.0), weight=empty(5, grad=True)), RuntimeError, "expected label_smoothing between 0.0 and 1.0, got 2.0"),
]  # fmt: skip
LEAN_ONLY = [
    ("negative z_loss", case(z_loss=value(-0.1)), RuntimeError, "expected z_loss finite and not negative, got -0.1"),
    ("infinite z_loss", case(z_loss=value(float("inf"))), RuntimeError, "expected z_loss finite and not negative, got inf"),
    ("negative scale", case(logit_scale=value(-1.0)), RuntimeError, "expected logit_scale finite and not negative, got -1.0"),
    ("zero softcap", case(softcap=value(0.0)), RuntimeError, "expected softcap finite and above 0, or None, got 0.0"),
    ("loss dtype", case(loss_dtype=value(torch.float16)), RuntimeError, "expected loss_dtype None or float32, got float16"),
    ("in place", lambda d: {**good(d), "input": torch.zeros(5, 3, device=d).t(), "inplace_backward": True}, RuntimeError, "expected a contiguous input of shape [N, C] for inplace_backward=True, got shape [3, 5] with strides [1, 3]; pass input.contiguous() or inplace_backward=False"),
]  # fmt: skip
DROP_IN_ONLY = [
    ("negative scale", case(lse_square_scale_for_zloss=value(-0.1)), RuntimeError, "expected lse_square_scale_for_zloss finite and not negative, got -0.1"),
    ("nan scale", case(lse_square_scale_for_zloss=value(float("nan"))), RuntimeError, "expected lse_square_scale_for_zloss finite and not negative, got nan"),
    ("3-d input", case(input=empty(3, 5, 2)), RuntimeError, "expected input of shape [N, C], got [3, 5, 2]"),
    ("1-d input", case(input=empty(5)), RuntimeError, "expected input of shape [N, C], got [5]"),
]  # fmt: skip

ROWS = [(function, *row) for function in ("cross_entropy", "npu_cross_entropy_loss") for row in TABLE]
ROWS += [("cross_entropy", *row) for row in LEAN_ONLY] + [("npu_cross_entropy_loss", *row) for row in DROP_IN_ONLY]
CALLERS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "function": lambda name: getattr(npu_ce_jit, name),
    "torch.ops": lambda name: getattr(torch.ops.npu_ce_jit, name),
    "no autograd": lambda name: torch.inference_mode()(getattr(torch.ops.npu_ce_jit, name)),
}


def identity(row: object) -> str | None:
    return row.replace(" ", "_") if isinstance(row, str) and len(row) < 40 else None


# A weight that requires gradients is an error in grad mode only: see the last test of this file.
CASES = [
    (caller, *row)
    for caller in CALLERS
    for row in ROWS
    if not (caller == "no autograd" and row[1] == "weight gradient")
]


@pytest.mark.parametrize("kind", ["real", "meta", "fake"])
@pytest.mark.parametrize(("caller", "function", "_what", "make", "error", "text"), CASES, ids=identity)
def test_the_table(
    caller: str,
    function: str,
    _what: str,
    make: Make,
    error: type[Exception],
    text: str,
    kind: str,
    any_device: torch.device,
) -> None:
    call = CALLERS[caller](function)

    device = "meta" if kind == "meta" else any_device.type
    with FakeTensorMode() if kind == "fake" else nullcontext():
        arguments = make(device)
        with pytest.raises(error) as caught:
            call(**arguments)
    assert type(caught.value) is error
    assert str(caught.value) == text.format(device=device)


@pytest.mark.parametrize("function", [cross_entropy, npu_cross_entropy_loss])
@pytest.mark.parametrize("missing", ["input", "target"])
def test_none_is_a_type_error(function: Callable[..., Any], missing: str) -> None:
    text = f"expected {missing} to be a Tensor, got NoneType"
    with pytest.raises(TypeError, match=text):
        function(**{**good(), missing: None})
    with pytest.raises(TypeError, match=text):
        getattr(torch.ops.npu_ce_jit, function.__name__)(**{**good(), missing: None})
    with pytest.raises(TypeError, match=f"expected {missing} to be a Tensor, got list"):
        function(**{**good(), missing: [1]})


@pytest.mark.parametrize("name", ["target", "weight"])
@pytest.mark.parametrize("function", [cross_entropy, npu_cross_entropy_loss])
def test_devices_that_differ(function: Callable[..., Any], name: str) -> None:
    text = f"expected {name} on input's device meta, got cpu"
    arguments = {**good("meta"), "weight": torch.zeros(5, device="meta")}
    arguments[name] = arguments[name].new_zeros(arguments[name].shape, device="cpu")
    for call in (function, getattr(torch.ops.npu_ce_jit, function.__name__)):
        with pytest.raises(RuntimeError, match=text):
            call(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"grad_loss": None}, TypeError, "expected grad_loss to be a Tensor, got NoneType"),
        ({"grad_loss": torch.zeros(3)}, RuntimeError, "expected grad_loss of shape [1] or [] for reduction 'mean', got [3]"),
        ({"grad_loss": torch.zeros(1), "reduction": "none"}, RuntimeError, "expected grad_loss of shape [3] for reduction 'none', got [1]"),
        ({"grad_loss": torch.zeros(1, dtype=torch.int64)}, RuntimeError, "expected grad_loss of a floating dtype, got int64"),
        ({"grad_loss": torch.zeros(1, device="meta")}, RuntimeError, "expected grad_loss on log_prob's device cpu, got meta"),
        ({"log_prob": torch.zeros(3, 5, 1)}, RuntimeError, "expected log_prob of shape [N, C], got [3, 5, 1]"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, ValueError, "expected input batch_size (3) to match target batch_size (4)"),
        ({"reduction": "avg"}, ValueError, "expected reduction 'none', 'mean' or 'sum', got 'avg'"),
        ({"lse_square_scale_for_zloss": 0.5}, RuntimeError, "expected lse_for_zloss of shape [3] with lse_square_scale_for_zloss=0.5, got None"),
        ({"lse_square_scale_for_zloss": 0.5, "lse_for_zloss": torch.zeros(4)}, RuntimeError, "expected lse_for_zloss of shape [3], got [4]"),
    ],
    ids=lambda v: None,
)  # fmt: skip
def test_the_backward_operators_table(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {
        "grad_loss": torch.ones(1), "log_prob": torch.zeros(3, 5), "target": torch.zeros(3, dtype=torch.int64), **changes,
    }  # fmt: skip
    for call in (npu_cross_entropy_loss_backward, torch.ops.npu_ce_jit.npu_cross_entropy_loss_backward):
        with pytest.raises(error) as caught:
            call(**arguments)
        assert str(caught.value) == text


def test_higher_ranks_report_their_own_shapes() -> None:
    x = torch.zeros(3, 5, 2)
    with pytest.raises(ValueError, match=r"expected input batch_size \(3\) to match target batch_size \(4\)"):
        cross_entropy(x, torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"expected target of shape \[3, 2\], got \[3\]"):
        cross_entropy(x, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"expected target of shape \[\] for input of shape \[C\], got \[3\]"):
        cross_entropy(x[0, :, 0], torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(3, 0, 2), (0, 0, 4), (0,)])
def test_no_classes_at_any_rank(shape: tuple[int, ...]) -> None:
    target = torch.zeros(shape[:1] + shape[2:] if len(shape) > 1 else (), dtype=torch.int64)
    with pytest.raises(RuntimeError) as caught:
        cross_entropy(torch.zeros(shape), target)
    assert str(caught.value) == f"expected input with at least one class, got shape {list(shape)}"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        *((cross_entropy, name) for name in ("label_smoothing", "z_loss", "softcap", "logit_scale")),
        *((npu_cross_entropy_loss, name) for name in ("label_smoothing", "lse_square_scale_for_zloss")),
    ],
)
def test_a_tensor_where_a_number_belongs_does_not_lose_its_gradient(function: Callable[..., Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"expected {name} to be a number, got a Tensor"):
        function(**good(), **{name: torch.tensor(0.5, requires_grad=True)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("sizes", [(), (5,), (5, 4), (4, 2), (5, 2, 3)], ids=str)
@pytest.mark.parametrize("extra", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("is_linear", [False, True], ids=["logits", "linear"])
def test_targets_of_a_wrong_batch_size_are_told_as_torch_tells_them(
    is_linear: bool, extra: tuple[int, ...], sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    """The batch size is reported first, whatever else is wrong."""
    target = torch.zeros(sizes).to(dtype)
    if is_linear:
        functions, arguments = (
            (torch_features.linear_cross_entropy, linear_cross_entropy),
            (torch.ones(3, 6), torch.ones(4, *extra, 6)),
        )
    else:
        functions, arguments = (F.cross_entropy, cross_entropy), (torch.ones(3, 4, *extra),)
    reported = []
    for function in functions:
        with pytest.raises(ValueError, match="batch_size") as caught:
            function(*arguments, target)
        reported.append(str(caught.value).lower().rstrip("."))
    assert reported[0] == reported[1]


def test_a_bad_call_writes_nothing() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises(IndexError):
        cross_entropy(x, torch.tensor([0, 9, 1]), inplace_backward=True)
    assert torch.equal(x, before)


@needs_the_library
@pytest.mark.parametrize(
    "changes",
    [
        {"input": torch.zeros(3, 5, 2, 1)},
        {"input": torch.zeros(3, 0)},
        {"target": torch.zeros(3, 1, dtype=torch.int64)},
        {"target": torch.zeros(4, dtype=torch.int64)},
        {"target": torch.tensor([0, 7, 1])},
        {"weight": torch.zeros(5, 1)},
        {"weight": torch.zeros(4)},
    ],
    ids=lambda changes: "-".join(f"{name}{list(tensor.shape)}" for name, tensor in changes.items()),
)
def test_the_library_repeats_what_protects_memory_in_the_same_words(changes: dict[str, Any]) -> None:
    arguments = {**good(), "weight": None, **changes}
    raised = []
    for call in (
        lambda: npu_cross_entropy_loss(**arguments),
        lambda: torch.ops.npu_ce_jit._forward(*arguments.values(), 1, -100, 0.0, 0.0, 0.0, 1.0, 0, torch.float32),
    ):
        with pytest.raises((RuntimeError, ValueError, IndexError)) as caught:
            call()
        raised.append((type(caught.value), str(caught.value)))
    assert raised[0] == raised[1]


def test_weights_may_require_gradients_where_none_are_recorded() -> None:
    with torch.no_grad():
        cross_entropy(**good(), weight=torch.ones(5, requires_grad=True))
