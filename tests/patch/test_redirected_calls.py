# SPDX-License-Identifier: Apache-2.0
"""What F.cross_entropy returns while it is redirected: torch's result or error, and who computed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_features
from shapes import DTYPES, logits, targets
from switch_tools import by_ours, outcome, require_same
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nested import nested_tensor

import npu_ce_jit
from npu_ce_jit import bootstrap
from npu_ce_jit.patch import redirected_calls
from npu_ce_jit.session import Kernels

Call = Callable[[], Any]


@pytest.mark.feature("F.cross_entropy redirected")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 6), (3, 6, 4), (2, 6, 3, 5), (0, 6), (2, 6, 0)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_results_are_torchs(
    smoothing: float,
    weighted: bool,
    reduction: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    any_device: torch.device,
) -> None:
    x, target = torch.randn(shape).to(dtype), torch.randint(6, shape[:1] + shape[2:])
    target.view(-1)[::4] = 2
    weight = torch.rand(6).to(dtype) if weighted else None
    leaf, on_device = x.clone().requires_grad_(), x.to(any_device, copy=True).requires_grad_()
    options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": 2}
    exact_leaf = x.double().requires_grad_()
    exact = F.cross_entropy(exact_leaf, target, None if weight is None else weight.double(), **options)
    theirs = F.cross_entropy(leaf, target, weight, **options)
    there = [None if tensor is None else tensor.to(any_device) for tensor in (target, weight)]
    with npu_ce_jit.installed():
        ours = by_ours(lambda: F.cross_entropy(on_device, *there, **options))
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-6, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(ours.cpu().double(), exact, rtol=tolerance, atol=tolerance, equal_nan=True)
    for loss in (ours, exact):
        loss.sum().backward()
    assert on_device.grad.dtype == leaf.dtype
    torch.testing.assert_close(on_device.grad.cpu().double(), exact_leaf.grad, rtol=tolerance, atol=tolerance)


X, TARGET, WEIGHT = torch.linspace(-2, 3, 20).reshape(4, 5), torch.tensor([0, 4, -100, 2]), torch.linspace(0.5, 1.5, 5)
LEFT_TO_TORCH: dict[str, Call] = {
    "one row of logits": lambda: F.cross_entropy(X[0], TARGET[0]),
    "probabilities": lambda: F.cross_entropy(X, X.softmax(1), label_smoothing=0.1),
    "size_average": lambda: F.cross_entropy(X, TARGET, size_average=False),
    "reduce": lambda: F.cross_entropy(X, TARGET, reduce=False),
    "uint8 target": lambda: F.cross_entropy(X, TARGET.clamp(0).byte()),
    "int32 target": lambda: F.cross_entropy(X, TARGET.int()),
    "no target": lambda: F.cross_entropy(X, None),
    "list for a target": lambda: F.cross_entropy(X, [0, 1, 2, 3]),
    "target of another size": lambda: F.cross_entropy(X, TARGET[:3]),
    "target of another rank": lambda: F.cross_entropy(X, TARGET[:, None]),
    "no class": lambda: F.cross_entropy(X[:, :0], TARGET),
    "integer logits": lambda: F.cross_entropy(X.long(), TARGET),
    "complex logits": lambda: F.cross_entropy(X.to(torch.complex64), TARGET),
    "float8 logits": lambda: F.cross_entropy(X.to(torch.float8_e4m3fn), TARGET),
    "meta logits": lambda: F.cross_entropy(X.to("meta"), TARGET.to("meta")),
    "target on another device": lambda: F.cross_entropy(X, TARGET.to("meta")),
    "sparse logits": lambda: F.cross_entropy(X.to_sparse(), TARGET),
    "nested logits": lambda: F.cross_entropy(nested_tensor([X, X]), TARGET),
    "jagged logits": lambda: F.cross_entropy(nested_tensor([X, X], layout=torch.jagged), TARGET),
    "weight of another size": lambda: F.cross_entropy(X, TARGET, WEIGHT[:4]),
    "weight of another rank": lambda: F.cross_entropy(X, TARGET, WEIGHT[None]),
    "weight of another dtype": lambda: F.cross_entropy(X.bfloat16(), TARGET, WEIGHT),
    "bfloat16 weight": lambda: F.cross_entropy(X, TARGET, WEIGHT.bfloat16()),
    "differentiated weight": lambda: F.cross_entropy(X, TARGET, WEIGHT.clone().requires_grad_()),
    "unknown reduction": lambda: F.cross_entropy(X, TARGET, reduction="avg"),
    "no reduction": lambda: F.cross_entropy(X, TARGET, reduction=None),
    "negative smoothing": lambda: F.cross_entropy(X, TARGET, label_smoothing=-0.1),
    "too much smoothing": lambda: F.cross_entropy(X, TARGET, label_smoothing=1.5),
    "smoothing in a tensor": lambda: F.cross_entropy(X, TARGET, label_smoothing=torch.tensor(0.1)),
    "fractional ignore_index": lambda: F.cross_entropy(X, TARGET, ignore_index=1.5),
    "huge ignore_index": lambda: F.cross_entropy(X, TARGET, ignore_index=2**70),
    "unknown argument": lambda: F.cross_entropy(X, TARGET, z_loss=0.1),
    "too few arguments": lambda: F.cross_entropy(X),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce args", "ignore:.*prototype")
@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_what_is_left_to_torch(name: str) -> None:
    require_same(LEFT_TO_TORCH[name], by_whom="torch")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 1)], ids=str)
def test_a_target_out_of_range_is_told_in_torchs_words(shape: tuple[int, ...], smoothing: float) -> None:
    x, target = X.reshape(shape), (TARGET + 1).reshape(4, *shape[2:])
    require_same(lambda: F.cross_entropy(x, target, label_smoothing=smoothing))
    with npu_ce_jit.installed(), pytest.raises(IndexError, match=r"^Target 5 is out of bounds\.$") as caught:
        F.cross_entropy(x, target, label_smoothing=smoothing)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_differentiated_weight_is_torchs_in_forward_mode() -> None:
    def directional(weight: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(weight, torch.ones_like(weight))
            loss = F.cross_entropy(X, TARGET, dual, label_smoothing=0.1)
            return forward_ad.unpack_dual(loss).tangent

    assert directional(WEIGHT) != 0
    require_same(lambda: directional(WEIGHT), by_whom="torch")
    require_same(
        lambda: torch.func.jvp(lambda w: F.cross_entropy(X, TARGET, w, label_smoothing=0.1), (WEIGHT,), (X[0],))
    )
    require_same(lambda: torch.func.grad(lambda w: F.cross_entropy(X, TARGET, w))(WEIGHT))


def test_a_constant_weight_is_ours_although_it_requires_a_gradient_elsewhere() -> None:
    weight = WEIGHT.clone().requires_grad_()
    with torch.no_grad():
        require_same(lambda: F.cross_entropy(X, TARGET, weight), by_whom="torch")
        require_same(lambda: F.cross_entropy(X, TARGET, weight.detach()), by_whom="ours")


@pytest.mark.feature("autocast, F.cross_entropy redirected")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("weight_dtype", [None, torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_torchs(to: torch.dtype, weight_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    weight = None if weight_dtype is None else WEIGHT.to(weight_dtype)

    def step() -> tuple[Tensor, Tensor]:
        leaf = X.to(dtype).requires_grad_()
        with torch.autocast("cpu", to):
            loss = F.cross_entropy(leaf, TARGET, weight, label_smoothing=0.1)
        return loss, *torch.autograd.grad(loss, leaf)

    takes = weight_dtype is None or (weight_dtype is torch.float64) == (dtype is torch.float64)
    require_same(step, by_whom="ours" if takes else "torch")


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Any]] = {
    "grad": lambda loss: torch.func.grad(loss)(X, TARGET),
    "jvp": lambda loss: torch.func.jvp(lambda x: loss(x, TARGET), (X,), (X.sin(),)),
    "vmap": lambda loss: torch.vmap(loss)(X[:, None], TARGET[:, None]),
    "vmap of grad": lambda loss: torch.vmap(torch.func.grad(loss))(X[:2, None], TARGET[:2, None]),
    "hessian": lambda loss: torch.func.hessian(loss)(X, TARGET),
    "jacfwd": lambda loss: torch.func.jacfwd(lambda x: loss(x, TARGET, reduction="none"))(X),
}


@pytest.mark.feature("torch.func, F.cross_entropy redirected")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_torchs(name: str) -> None:
    require_same(lambda: TRANSFORMS[name](F.cross_entropy), by_whom="ours")


@pytest.mark.feature("nn.CrossEntropyLoss redirected")
def test_whatever_ends_in_it_gains() -> None:
    hidden, head = torch.randn(4, 3), torch.randn(5, 3)
    require_same(lambda: nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1)(X, TARGET), by_whom="ours")
    require_same(lambda: torch_features.linear_cross_entropy(hidden, head, TARGET), by_whom="ours")
    require_same(lambda: nn.CrossEntropyLoss()(X, X.softmax(1)), by_whom="torch")


def test_the_reference_takes_nothing_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    session = bootstrap.run()
    monkeypatch.setattr(redirected_calls.bootstrap, "run", lambda: session._replace(cpu=Kernels()))
    require_same(lambda: F.cross_entropy(X, TARGET), by_whom="torch")


@pytest.mark.feature("training script without an edit")
def test_a_training_loop_takes_the_same_steps() -> None:
    def losses() -> list[float]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 11))
        x, target = torch.randn(64, 6), targets(64, 11, 0.1)
        optimiser, criterion = torch.optim.SGD(model.parameters(), lr=0.5), nn.CrossEntropyLoss(label_smoothing=0.05)
        found = []
        for _ in range(20):
            optimiser.zero_grad()
            loss = criterion(model(x), target)
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        return found

    theirs = losses()
    with npu_ce_jit.installed():
        ours = by_ours(losses)
    assert theirs[-1] < 0.9 * theirs[0]
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert outcome(losses) == theirs, "the switch is off again"


def test_wide_rows_of_halves_are_nearer_to_the_truth_than_torchs() -> None:
    x, target = logits(8, 3000, torch.bfloat16), targets(8, 3000)
    exact = torch.func.grad(lambda a: F.cross_entropy(a, target))(x.double())
    theirs = torch.func.grad(lambda a: F.cross_entropy(a, target))(x)
    with npu_ce_jit.installed():
        ours = torch.func.grad(lambda a: F.cross_entropy(a, target))(x)
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max()


REASONS = {
    "one row of logits": "logits of one row, [C]",
    "probabilities": "class probabilities",
    "reduce": "size_average or reduce",
    "int32 target": "targets that are not int64",
    "list for a target": "an argument that is no Tensor",
    "sparse logits": "a nested or sparse tensor",
    "meta logits": "no kernels of ours for meta",
    "weight of another dtype": "a weight of another dtype than the logits",
    "differentiated weight": "a weight that is differentiated",
    "integer logits": "a dtype that ours does not have on this device",
    "no class": "arguments that ours refuses with RuntimeError",
    "smoothing in a tensor": "ignore_index or label_smoothing that is no number",
}


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_calls_are_counted_and_each_new_reason_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = redirected_calls.of_function
    monkeypatch.setattr(counts, "ours", 0)
    monkeypatch.setattr(counts, "passed_through", {})
    caplog.set_level("DEBUG", "npu_ce_jit")
    with npu_ce_jit.installed():
        for name in REASONS:
            for _ in range(3):
                outcome(LEFT_TO_TORCH[name])
        for _ in range(5):
            F.cross_entropy(X, TARGET)
    answer = npu_ce_jit.info()["answers"]["torch.nn.functional.cross_entropy"]
    assert answer["ours"] == 5
    assert answer["passed_through"] == dict.fromkeys(REASONS.values(), 3)
    reported = [record.getMessage() for record in caplog.records if "passed through" in record.getMessage()]
    assert reported == [f"a call of torch.nn.functional.cross_entropy passed through: {r}" for r in REASONS.values()]
    F.cross_entropy(X, TARGET)
    assert counts.ours == 5, "the switch is off"
