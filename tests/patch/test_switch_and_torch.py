# SPDX-License-Identifier: Apache-2.0
"""How torch treats the redirected F.cross_entropy: objects, overrides, torch.jit, torch.compile, export."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from probes import needs_the_library
from switch_tools import by_ours, require_same, runs_ours
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.export import Dim
from torch.nn.functional import cross_entropy as imported_before
from torch.overrides import TorchFunctionMode
from torch.profiler import profile

import npu_ce_jit

pytestmark = needs_the_library
X, TARGET = torch.linspace(-2, 3, 20).reshape(4, 5), torch.tensor([0, 4, -100, 2])


def loss(x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(x, target)


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    npu_ce_jit.uninstall()


def test_the_function_is_the_same_object_and_says_the_same_of_itself() -> None:
    signature, pickled, holder = inspect.signature(F.cross_entropy), pickle.dumps(F.cross_entropy), {F.cross_entropy: 1}
    with npu_ce_jit.installed():
        assert F.cross_entropy is imported_before
        by_ours(lambda: imported_before(X, TARGET))
        assert inspect.signature(F.cross_entropy) == signature
        assert pickle.dumps(F.cross_entropy) == pickled
        assert pickle.loads(pickled) is copy.deepcopy(F.cross_entropy) is F.cross_entropy
        assert F.cross_entropy in holder
        assert F.cross_entropy.__doc__.startswith("Compute the cross entropy loss")


HANDLED = {F.cross_entropy: "handled"}


class Overriding(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return HANDLED.get(func) or super().__torch_function__(func, types, args, kwargs or {})


class Labelled(Tensor):
    """A tensor class that torch's functions preserve."""


class OfItsOwnOperators(Tensor):
    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.namespace in ("aten", "prim"), f"knows no {func}"
        return super().__torch_dispatch__(func, types, args, kwargs or {})


@pytest.mark.parametrize("kind", [Overriding, Labelled, nn.Parameter])
def test_subclasses_see_torchs_function(kind: type[Tensor]) -> None:
    x = nn.Parameter(X) if kind is nn.Parameter else X.as_subclass(kind)
    expected = F.cross_entropy(x, TARGET)
    assert (expected == "handled") == (kind is Overriding)
    with npu_ce_jit.installed():
        found, ours = runs_ours(lambda: F.cross_entropy(x, TARGET))
    assert ours == (kind is nn.Parameter)
    assert type(found) is type(expected)


def test_a_subclass_meets_no_operator_that_it_does_not_know() -> None:
    x = torch.Tensor._make_subclass(OfItsOwnOperators, X)
    require_same(lambda: torch.is_tensor(F.cross_entropy(x, TARGET)), by_whom="torch")


def test_modes_see_torchs_function_once_and_a_default_device_costs_no_gain() -> None:
    seen: list[Any] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with npu_ce_jit.installed():
        with Watching():
            F.cross_entropy(X, TARGET)
        assert seen == [F.cross_entropy]
        with torch.device("cpu"):
            by_ours(lambda: F.cross_entropy(X, TARGET))


def test_torch_jit_and_fx_make_what_they_made_before() -> None:
    def graphs() -> tuple[str, ...]:
        scripted = (torch.jit.script(one) for one in (F.cross_entropy, nn.CrossEntropyLoss()))
        traced = torch.jit.trace(loss, (X, TARGET))
        return *(str(one.graph) for one in scripted), str(traced.inlined_graph), torch.fx.symbolic_trace(loss).code

    expected = graphs()
    assert "npu_ce_jit" not in "".join(expected)
    with npu_ce_jit.installed():
        assert graphs() == expected
        by_ours(lambda: torch.fx.symbolic_trace(loss)(X, TARGET))


@pytest.mark.feature("torch.compile, F.cross_entropy redirected")
@pytest.mark.parametrize("criterion", [F.cross_entropy, nn.CrossEntropyLoss()], ids=["function", "module"])
@pytest.mark.parametrize("first", [True, False], ids=["installed before", "installed after"])
def test_a_compiled_function_follows_the_switch(first: bool, criterion: Callable[..., Tensor]) -> None:
    compiled_with: list[bool] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled_with.append("npu_ce_jit" in graph.code)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, target: criterion(x * 2, target), backend=aot_autograd(fw_compiler=compiler), fullgraph=True
    )
    expected = F.cross_entropy(X * 2, TARGET)
    for on in (first, not first, first):
        (npu_ce_jit.install if on else npu_ce_jit.uninstall)()
        torch.testing.assert_close(compiled(X, TARGET), expected)
    assert compiled_with[:2] == [first, not first]
    assert compiled_with[2:] in ([], [first])  # before torch 2.10 no graph outlasts the switch


@pytest.mark.feature("torch.compile with dynamic shapes, F.cross_entropy redirected")
def test_one_graph_for_any_number_of_rows() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    with npu_ce_jit.installed():
        compiled = torch.compile(loss, backend=counter, fullgraph=True)
        for rows in (4, 7, 3, 11):
            x, target = torch.randn(rows, 5), torch.randint(5, (rows,))
            for tensor in (x, target):
                torch._dynamo.mark_dynamic(tensor, 0)
            torch.testing.assert_close(compiled(x, target), F.cross_entropy(x, target))
    assert counter.frame_count == 1


@pytest.mark.feature("torch.export, F.cross_entropy redirected")
@pytest.mark.parametrize("strict", [True, False])
def test_an_export_has_our_operator(strict: bool) -> None:
    class Loss(nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return loss(x, target)

    rows = Dim("rows", min=2)
    with npu_ce_jit.installed():
        program = torch.export.export(Loss(), (X, TARGET), dynamic_shapes=({0: rows}, {0: rows}), strict=strict)
    operators = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    of_shapes = (torch.ops.aten.sym_size.int, torch.ops.aten._assert_scalar.default)
    assert [one for one in operators if one not in of_shapes] == [torch.ops.npu_ce_jit.cross_entropy.default]
    torch.testing.assert_close(program.module()(X[:3], TARGET[:3]), loss(X[:3], TARGET[:3]))


def test_fake_tensors_have_torchs_shapes() -> None:
    with FakeTensorMode() as mode:
        fakes = mode.from_tensor(X), mode.from_tensor(TARGET)
        with npu_ce_jit.installed():
            for reduction, shape in (("mean", ()), ("sum", ()), ("none", (4,))):
                assert F.cross_entropy(*fakes, reduction=reduction).shape == shape


@pytest.mark.feature("DTensor, F.cross_entropy redirected")
def test_distributed_tensors_are_ours(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        x, target = (distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (X, TARGET))
        # The sum: torch's own mean needs an average that gloo lacks before torch 2.9.
        require_same(lambda: F.cross_entropy(x, target, reduction="sum").full_tensor(), by_whom="ours")
    finally:
        dist.destroy_process_group()


@pytest.mark.feature("torch.profiler, F.cross_entropy redirected")
def test_a_profile_shows_our_operator() -> None:
    with profile() as without:
        loss(X, TARGET)
    with npu_ce_jit.installed(), profile() as with_ours:
        loss(X, TARGET)
    assert "npu_ce_jit::cross_entropy" not in {event.name for event in without.events()}
    assert "npu_ce_jit::cross_entropy" in {event.name for event in with_ours.events()}


def test_the_users_tag_of_compile_caches_is_kept() -> None:
    config = torch.compiler.config
    with config.patch(cache_key_tag="mine"):
        npu_ce_jit.install()
        npu_ce_jit.install()
        assert config.cache_key_tag == "mine+npu_ce_jit"
        npu_ce_jit.uninstall()
        assert config.cache_key_tag == "mine"
        npu_ce_jit.install()
        config.cache_key_tag = "set since"
        npu_ce_jit.uninstall()
        assert config.cache_key_tag == "set since"


def test_compile_caches_on_disk_tell_the_two_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A criterion made inside the graph appears there as torch's function, which is also in the caches' keys."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def made_in_the_graph(x: Tensor, target: Tensor) -> Tensor:
        return nn.CrossEntropyLoss()(x, target)

    def step() -> None:
        torch._dynamo.reset()
        torch.compile(made_in_the_graph, fullgraph=True)(X, TARGET)

    def hits_and_misses() -> tuple[int, int]:
        counters.clear()
        step()
        return tuple(counters["aot_autograd"][f"autograd_cache_{name}"] for name in ("hit", "miss"))

    assert hits_and_misses() == (0, 1)
    assert hits_and_misses() == (1, 0)
    with npu_ce_jit.installed():
        assert hits_and_misses() == (0, 1)
        assert hits_and_misses() == (1, 0)
    assert hits_and_misses() == (1, 0)
