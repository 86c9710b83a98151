# SPDX-License-Identifier: Apache-2.0
"""The nn.Module forms beside torch's: constructors, results, and what programs do with modules."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_features import LinearCrossEntropyLoss as TorchsLinearLoss

import npu_ce_jit
from npu_ce_jit import torch_compat
from npu_ce_jit.torch_compat import LinearCrossEntropyOptions

F64 = torch.float64
WEIGHT = torch.linspace(0.5, 1.5, 5, dtype=F64)
PAIRS = [
    pytest.param(npu_ce_jit.CrossEntropyLoss, nn.CrossEntropyLoss, (), id="CrossEntropyLoss"),
    pytest.param(npu_ce_jit.LinearCrossEntropyLoss, TorchsLinearLoss, (3, 5), id="LinearCrossEntropyLoss"),
]
Pair = tuple[type[nn.Module], type[nn.Module], tuple[Any, ...]]


def targets_of(rows: tuple[int, ...], kind: str) -> Tensor:
    if kind == "probabilities":
        return torch.rand((*rows[:1], 5, *rows[1:]), dtype=F64).softmax(1 if rows else 0)
    target = torch.randint(5, rows)
    target.view(-1)[::3] = 2
    return target


def require_same(ours: nn.Module, theirs: nn.Module, input: Tensor, target: Tensor) -> None:
    """Compares the loss and all gradients of two modules with the same parameters."""
    found = []
    for module in (ours, theirs):
        leaf = input.clone().requires_grad_()
        loss = module(leaf, target)
        found.append((loss, *torch.autograd.grad(loss.sum(), [leaf, *module.parameters()])))
    torch.testing.assert_close(*found, equal_nan=True)


@pytest.mark.feature("CrossEntropyLoss module")
@pytest.mark.parametrize("rows", [(), (4,), (4, 2), (4, 2, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("kind", "ignore_index", "smoothing"), [("indices", -100, 0.0), ("indices", 2, 0.1), ("probabilities", -100, 0.1)]
)
def test_cross_entropy_loss(
    kind: str, ignore_index: int, smoothing: float, weight: Tensor | None, reduction: str, rows: tuple[int, ...]
) -> None:
    arguments = (weight, None, ignore_index, None, reduction, smoothing)
    input = torch.randn((*rows[:1], 5, *rows[1:]), dtype=F64)
    ours, theirs = npu_ce_jit.CrossEntropyLoss(*arguments), nn.CrossEntropyLoss(*arguments)
    require_same(ours, theirs, input, targets_of(rows, kind))


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("legacy", [{"size_average": False}, {"reduce": False}, {"size_average": True}], ids=str)
def test_deprecated_arguments_of_cross_entropy_loss(legacy: dict[str, bool]) -> None:
    input, target = torch.randn(4, 5, dtype=F64), targets_of((4,), "indices")
    require_same(npu_ce_jit.CrossEntropyLoss(**legacy), nn.CrossEntropyLoss(**legacy), input, target)


@pytest.mark.feature("LinearCrossEntropyLoss module")
@pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")
@pytest.mark.parametrize("out_features", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("kind", "ignore_index", "smoothing"),
    [("indices", None, 0.0), ("indices", -100, 0.1), ("indices", 2, 0.0), ("probabilities", None, 0.1)],
)
@pytest.mark.parametrize("options", [None, LinearCrossEntropyOptions(batch_chunk_size=2)], ids=["whole", "chunked"])
def test_linear_cross_entropy_loss(
    options: LinearCrossEntropyOptions | None,
    kind: str,
    ignore_index: int | None,
    smoothing: float,
    weight: Tensor | None,
    bias: bool,
    reduction: str,
    out_features: tuple[int, ...],
) -> None:
    keywords: dict[str, Any] = {
        "out_features": out_features, "bias": bias, "device": "cpu", "dtype": F64, "reduction": reduction,
        "weight": weight, "ignore_index": ignore_index, "label_smoothing": smoothing, "options": options,
    }  # fmt: skip
    ours, theirs = (
        npu_ce_jit.LinearCrossEntropyLoss(3, 5, **keywords),
        TorchsLinearLoss(3, 5, **keywords),
    )
    ours.load_state_dict(theirs.state_dict())
    require_same(ours, theirs, torch.randn(4, 3, dtype=F64), targets_of((4, *out_features), kind))


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_linear_cross_entropy_loss_of_one_row(kind: str) -> None:
    ours, theirs = (kind(3, 5, dtype=F64) for kind in (npu_ce_jit.LinearCrossEntropyLoss, TorchsLinearLoss))
    theirs.load_state_dict(ours.state_dict())
    require_same(ours, theirs, torch.randn(3, dtype=F64), targets_of((), kind))


@pytest.mark.parametrize(("ours", "theirs", "sizes"), PAIRS)
def test_what_the_constructors_refuse(ours: type[nn.Module], theirs: type[nn.Module], sizes: tuple[int, ...]) -> None:
    for wrong in ({"zloss": 0.1}, {"features": 3}):
        for kind in (ours, theirs):
            with pytest.raises(TypeError, match="unexpected keyword argument"):
                kind(*sizes, **wrong)
    if sizes:
        for refused in ({"weight": WEIGHT[:3]}, {"label_smoothing": 1.5}):
            messages = []
            for kind in (ours, theirs):
                with pytest.raises(RuntimeError) as caught:
                    kind(*sizes, **refused)
                messages.append(str(caught.value))
            assert messages[0] == messages[1]


@pytest.mark.parametrize(("ours", "theirs", "sizes"), PAIRS)
def test_an_index_to_ignore_means_nothing_to_probabilities(
    ours: type[nn.Module], theirs: type[nn.Module], sizes: tuple[int, ...]
) -> None:
    input = torch.randn(4, sizes[0] if sizes else 5)
    for kind in (ours, theirs):
        with pytest.raises(RuntimeError, match="ignore_index"):
            kind(*sizes, ignore_index=2)(input, targets_of((4,), "probabilities").float())


@pytest.mark.parametrize(("ours", "theirs", "sizes"), PAIRS)
def test_what_a_program_does_with_a_module(
    ours: type[nn.Module], theirs: type[nn.Module], sizes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    module = ours(*sizes, weight=WEIGHT.float(), z_loss=0.01, softcap=9.0)
    assert isinstance(module, (nn.CrossEntropyLoss, torch_compat.LinearCrossEntropyLoss))
    input, target = torch.randn(4, sizes[0] if sizes else 5), targets_of((4,), "indices")
    expected = module(input, target)

    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
        nn.Sequential(module)[0].train(),
    ):
        assert torch.equal(twin(input, target), expected)
        assert repr(twin) == repr(module)
    assert "z_loss=0.01, softcap=9.0" in repr(module)

    torchs = theirs(*sizes, weight=torch.ones(5))
    torchs.load_state_dict(module.state_dict())
    module.load_state_dict(torchs.state_dict())
    assert list(module.state_dict()) == list(torchs.state_dict())
    assert module.to(torch.bfloat16)(input.bfloat16(), target).dtype is torch.bfloat16
    for attribute in ("reduction", "ignore_index", "label_smoothing"):
        assert getattr(module, attribute) == getattr(torchs, attribute)
    assert getattr(module, "__constants__", None) == getattr(torchs, "__constants__", None)  # torch's modules have it


@pytest.mark.parametrize(("ours", "theirs", "sizes"), PAIRS)
def test_scripting_is_refused_by_name(ours: type[nn.Module], theirs: type[nn.Module], sizes: tuple[int, ...]) -> None:
    for module in (ours(*sizes), nn.Sequential(ours(*sizes))):
        with pytest.raises(RuntimeError, match=rf"got npu_ce_jit\.{ours.__name__}: it cannot be scripted; use torch"):
            torch.jit.script(module)


def test_without_options_they_show_themselves_as_torchs() -> None:
    assert repr(npu_ce_jit.CrossEntropyLoss()) == repr(nn.CrossEntropyLoss()) == "CrossEntropyLoss()"
    shown = repr(npu_ce_jit.LinearCrossEntropyLoss(3, 5, bias=True))
    assert repr(TorchsLinearLoss(3, 5, bias=True)).splitlines()[1] in shown


@pytest.mark.feature("torch.compile of the modules")
@pytest.mark.parametrize(("ours", "theirs", "sizes"), PAIRS)
def test_compiled_fullgraph(ours: type[nn.Module], theirs: type[nn.Module], sizes: tuple[int, ...]) -> None:
    module = ours(*sizes, z_loss=0.01)
    input, target = torch.randn(4, sizes[0] if sizes else 5), targets_of((4,), "indices")
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(input, target), module(input, target))
