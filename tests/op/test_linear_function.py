# SPDX-License-Identifier: Apache-2.0
"""Around the loss from hidden states: torch's calls, derivatives of every kind, tracing, the module."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.func as tf
import torch.nn.functional as F
from shapes import ON_NPU, targets
from test_derivatives import TRANSFORMS
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch_features import LinearCrossEntropyLoss as TorchsLinearLoss
from torch_features import linear_cross_entropy as torchs_linear_cross_entropy

import npu_ce_jit
from npu_ce_jit import LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy
from npu_ce_jit.op.schema import LOG_PROB
from npu_ce_jit.torch_compat import LinearCrossEntropyOptions

OPS = torch.ops.npu_ce_jit
TARGET = torch.tensor([4, 0, -100, 2, 1])
F64 = torch.float64


@pytest.mark.feature("calls of torch's F.linear_cross_entropy")
@pytest.mark.parametrize(
    ("input", "weight", "target"),
    [
        ((6,), (5, 6), torch.tensor(3)),
        ((3, 6), (5, 6), torch.tensor([1, -100, 4])),
        ((3, 6), (5, 2, 6), torch.randint(5, (3, 2))),
        ((3, 6), (5, 2, 4, 6), torch.randint(5, (3, 2, 4))),
        ((3, 6), (5, 6), torch.rand(3, 5).softmax(1)),
        ((6,), (5, 6), torch.rand(5).softmax(0)),
        ((3, 6), (5, 2, 6), torch.rand(3, 5, 2).softmax(1)),
    ],
    ids=lambda v: str(tuple(v.shape)) if isinstance(v, Tensor) else str(v),
)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")
def test_calls_written_for_torch(
    input: tuple[int, ...], weight: tuple[int, ...], target: Tensor, reduction: str
) -> None:
    x, w, b, classes = torch.randn(input), torch.randn(weight), torch.randn(weight[:-1]), torch.rand(5)
    for options in (None, LinearCrossEntropyOptions(), LinearCrossEntropyOptions(chunking_method=None)):
        for extra in ({}, {"linear_bias": b, "weight": classes, "label_smoothing": 0.1, "ignore_index": None}):
            keywords = {"reduction": reduction, "options": options, **extra}
            expected = torchs_linear_cross_entropy(x, w, target, **keywords)
            torch.testing.assert_close(linear_cross_entropy(x, w, target, **keywords), expected)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (LinearCrossEntropyOptions(batch_chunk_size=7), 7),
        (LinearCrossEntropyOptions(), 8),
        (LinearCrossEntropyOptions(chunking_method="aspect_ratio"), 16),
        (LinearCrossEntropyOptions(chunking_method="aspect_ratio:4"), 4),
        (LinearCrossEntropyOptions(chunking_method="aspect_ratio:99"), 1),
        (LinearCrossEntropyOptions(chunking_method=None), 100),
        (None, 100),
    ],
    ids=str,
)
def test_options_say_how_many_rows_a_chunk_has(options: LinearCrossEntropyOptions | None, rows: int) -> None:
    with torch.profiler.profile(record_shapes=True) as profile:
        linear_cross_entropy(torch.randn(100, 4), torch.randn(33, 4), targets(100, 33), options=options)
    products = [event.input_shapes[0][0] for event in profile.events() if event.name == "aten::mm"]
    assert products[0] == rows
    assert sum(products) == 100


def layer(*batch: int) -> Tensor:
    return torch.randn(*batch, 5, 6, dtype=F64)


WEIGHT, BIAS = torch.randn(7, 6, dtype=F64, generator=torch.Generator().manual_seed(1)).split((6, 1))
BIAS = BIAS[0]
OPTIONS: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.3, "softcap": 3.0, "logit_scale": 1.3}


def ours(x: Tensor, w: Tensor = WEIGHT, b: Tensor = BIAS, **options: Any) -> Tensor:
    return linear_cross_entropy(x, w, TARGET, linear_bias=b, **OPTIONS, **options)


def theirs(x: Tensor, w: Tensor = WEIGHT, b: Tensor = BIAS) -> Tensor:
    y = 3.0 * torch.tanh(1.3 * F.linear(x, w, b) / 3.0)
    z = (0.3 * y.logsumexp(-1) ** 2 * (TARGET != -100)).sum() / 4
    return F.cross_entropy(y, TARGET, label_smoothing=0.1) + z


@pytest.mark.feature("torch.func: grad, vjp, jvp, vmap, jacrev, jacfwd, hessian, and their compositions")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("of", ["input", "linear_weight"])
def test_transforms_agree_with_torch(of: str, transform: str) -> None:
    hidden = layer()
    results = []
    for loss in (ours, theirs):
        # TRANSFORMS pass tensors of shape [5, 6]; a weight of that shape lacks one class.
        form = loss if of == "input" else lambda w, loss=loss: loss(hidden, torch.cat((w, WEIGHT[:1])))
        torch.manual_seed(1)
        results.append(TRANSFORMS[transform](form))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.feature("torch.func: grad, vjp, jvp, vmap, jacrev, jacfwd, hessian, and their compositions")
@pytest.mark.parametrize(
    "in_dims",
    [
        (0, None, None, None, None), (None, 1, None, None, None), (None, None, 0, None, None),
        (None, None, None, 1, None), (None, None, None, None, 0), (1, None, 1, None, None), (None, 2, None, 0, 1),
        (0, 1, 0, 1, 0),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_vmap_over_any_argument(in_dims: tuple[int | None, ...], reduction: str) -> None:
    """Also the gradients under vmap(grad), with respect to input, linear_weight and linear_bias."""
    single = layer(), WEIGHT, TARGET, BIAS, torch.rand(6, dtype=F64)
    tensors = [
        t if d is None else torch.stack([t.roll(i, 0) + 0 * t for i in range(3)], d)
        for t, d in zip(single, in_dims, strict=True)
    ]

    def of(loss: Any) -> Any:
        def call(x: Tensor, w: Tensor, t: Tensor, b: Tensor, c: Tensor) -> Tensor:
            return loss(x, w, t, linear_bias=b, weight=c, reduction=reduction, label_smoothing=0.1)

        return call, torch.func.grad(lambda *arguments: call(*arguments).pow(2).sum(), (0, 1, 3))

    for ours, theirs in zip(of(linear_cross_entropy), of(torchs_linear_cross_entropy), strict=True):
        one_by_one = [
            theirs(*(t if d is None else t.select(d, i) for t, d in zip(tensors, in_dims, strict=True)))
            for i in range(3)
        ]
        stacked = torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *one_by_one)
        torch.testing.assert_close(torch.vmap(ours, in_dims)(*tensors), stacked)


@pytest.mark.feature("double backward")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradcheck_forward_and_double(reduction: str) -> None:
    leaves = [t.clone().requires_grad_() for t in (layer(), WEIGHT, BIAS)]

    def loss(*parts: Tensor) -> Tensor:
        return ours(*parts, reduction=reduction, options=LinearCrossEntropyOptions(batch_chunk_size=2))

    assert gradcheck(loss, leaves, check_forward_ad=True)
    assert gradgradcheck(loss, leaves, check_fwd_over_rev=True)


def test_no_derivative_is_dropped_where_gradients_are_differentiated() -> None:
    results = []
    for loss in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in (layer().mul_(0).add_(0.3), WEIGHT, BIAS)]
        first = torch.autograd.grad(loss(*leaves) ** 2, leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first) + leaves[1].sum(), leaves)
        results.append((*first, *second))
    torch.testing.assert_close(*results)


@pytest.mark.feature("forward AD")
def test_forward_ad_in_eager_mode() -> None:
    x, v = layer(), layer()
    with forward_ad.dual_level():
        results = [forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent for f in (ours, theirs)]
    torch.testing.assert_close(*results)


def test_the_internal_operator_refuses_to_be_differentiated() -> None:
    def loss(x: Tensor) -> Tensor:
        terms = (1, -100, 0.0, 0.0, 0.0, 1.0)
        return OPS._linear(x, WEIGHT, None, TARGET, *[None] * 5, *terms, 0, F64, 0, 0, None, [True] * 3)[0]

    x = layer().requires_grad_()
    asked = (lambda: loss(x).backward(), lambda: tf.grad(loss)(x), lambda: tf.jvp(loss, (x,), (x,)))
    for ask in asked:
        with pytest.raises(NotImplementedError, match="expected no derivative of npu_ce_jit::_linear"):
            ask()


@pytest.mark.feature("torch.library.opcheck")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_opcheck(with_bias: bool, reduction: str, dtype: torch.dtype) -> None:
    x, w, b = (t.to(dtype).requires_grad_() for t in (layer(), WEIGHT.t(), BIAS))
    tensors = (x, w, TARGET, b if with_bias else None, torch.rand(6))
    for asked in (False, True):
        options = (reduction, -100, 0.1, 0.1, asked, 5.0, 1.3, asked, asked, asked, asked)
        torch.library.opcheck(OPS.linear_cross_entropy.default, (*tensors, *options))
    for mask in ([True, True, True], [False, True, False]):
        code = {"none": 0, "mean": 1, "sum": 2}[reduction]
        plain = (x.detach(), w.detach(), b.detach() if with_bias else None, TARGET, None, *[None] * 4)
        arguments = (*plain, code, -100, 0.0, 0.1, 0.0, 1.0, 31 - LOG_PROB, torch.float32, 2, 0, None, mask)
        torch.library.opcheck(OPS._linear.default, arguments)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = LinearCrossEntropyLoss(6, 33, bias=True, label_smoothing=0.1, z_loss=1e-3, softcap=20.0)

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        return self.head(self.body(hidden), target)


# Inductor needs a compiler for the device.
@pytest.mark.feature("torch.compile(fullgraph=True)")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", *([] if ON_NPU else ["inductor"])])
def test_compile_fullgraph(backend: str, device: torch.device) -> None:
    model = Model().to(device)
    hidden, target = torch.randn(7, 6).to(device), targets(7, 33, 0.2).to(device)
    results = []
    for call in (model, torch.compile(model, backend=backend, fullgraph=True)):
        model.zero_grad()
        loss = call(hidden, target)
        loss.backward()
        results.append([loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())])
    torch.testing.assert_close(*results)


def test_compile_of_the_function_as_an_attribute() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(x: Tensor) -> Tensor:
        return npu_ce_jit.linear_cross_entropy(x, WEIGHT, TARGET, reduction="none")

    x = layer()
    torch.testing.assert_close(loss(x), cross_entropy(x @ WEIGHT.t(), TARGET, reduction="none"))


@pytest.mark.feature("deepcopy and pickle of modules")
def test_the_module(device: torch.device) -> None:
    options: dict[str, Any] = {"reduction": "sum", "label_smoothing": 0.1, "ignore_index": 3, "bias": True}
    weight = torch.rand(7)
    module = LinearCrossEntropyLoss(4, 7, weight=weight, z_loss=0.01, softcap=9.0, **options).to(device)
    x, target = torch.randn(5, 4).to(device), targets(5, 7).to(device)
    logits = F.linear(x, module.linear.weight, module.linear.bias)
    expected = cross_entropy(logits, target, weight.to(device), "sum", 3, 0.1, z_loss=0.01, softcap=9.0).detach().cpu()
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(twin(x, target).detach().cpu(), expected)
    assert "in_features=4" in repr(module)
    assert "softcap=9.0" in repr(module)
    theirs = TorchsLinearLoss(4, 7, out_features=(2,), bias=True)
    ours = LinearCrossEntropyLoss(4, 7, out_features=(2,), bias=True)
    ours.load_state_dict(theirs.state_dict())
    x, target = x.cpu(), torch.randint(7, (5, 2))
    torch.testing.assert_close(ours(x, target), theirs(x, target))
    with pytest.raises(TypeError):
        LinearCrossEntropyLoss(4, 7, zloss=0.1)
