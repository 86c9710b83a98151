# SPDX-License-Identifier: Apache-2.0
"""Numbers that change between calls of a compiled function: each call's loss and gradient are those of its own numbers.

torch.compile is silently wrong where a function uses a float twice: as a factor of tensors, which keeps it symbolic,
and in an expression that becomes a constant of the graph. Its cache then reuses that graph for other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from oracle import Options, gradient, truth
from probes import needs_the_library
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import config as autograd_config
from torch._inductor import config as inductor_config
from torch._inductor.utils import fresh_cache

import npu_ce_jit
from npu_ce_jit import parallel

CLASSES = 7
TARGET = torch.tensor([1, 6, 5, 0, 3])


class Numbers(NamedTuple):
    """A caller's numbers; the options are expressions of them."""

    certainty: float
    share: float
    half_cap: float
    temperature: float
    place: int

    def smoothing(self) -> dict[str, Any]:
        return {"ignore_index": self.place + 2, "label_smoothing": 1 - self.certainty}

    def options(self) -> dict[str, Any]:
        cap, scale = 2 * self.half_cap, 1 / self.temperature
        return {**self.smoothing(), "z_loss": self.share / 3, "softcap": cap, "logit_scale": scale}


FIRST = Numbers(0.9, 0.3, 4.0, 0.5, 1)
SECOND = Numbers(0.8, 0.2, 3.0, 0.7, 3)  # torch makes a number symbolic once it has changed
THIRD = Numbers(0.7, 0.6, 5.0, 0.3, 4)
CALLS = [FIRST, SECOND, *(SECOND._replace(**{name: value}) for name, value in THIRD._asdict().items())]


class Way(NamedTuple):
    """The arguments of torch.compile."""

    backend: str
    dynamic: bool | None  # None: only numbers that have changed once become symbolic
    has_caches: bool


WAYS = {
    "aot_eager": Way("aot_eager", None, True),
    "aot_eager-dynamic": Way("aot_eager", True, True),
    "inductor": Way("inductor", None, True),
    "inductor-dynamic": Way("inductor", True, True),
    "inductor-static": Way("inductor", False, True),
    "inductor-without caches": Way("inductor", None, False),
}
IN_SHORT = ("aot_eager", "inductor")


class Form(NamedTuple):
    loss: Callable[[Tensor, Tensor, Numbers], Tensor]
    options: Callable[[Numbers], dict[str, Any]] = Numbers.options  # those that the loss takes
    calls: Sequence[Numbers] = CALLS
    ways: Collection[str] = tuple(WAYS)


def head() -> Tensor:
    return torch.eye(CLASSES)


def drop_in(x: Tensor, target: Tensor, n: Numbers) -> Tensor:
    loss, *_ = npu_ce_jit.npu_cross_entropy_loss(x, target, lse_square_scale_for_zloss=n.share / 3, **n.smoothing())
    return loss.reshape(())


FORMS = {
    "cross_entropy": Form(lambda x, y, n: npu_ce_jit.cross_entropy(x, y, **n.options())),
    "module": Form(lambda x, y, n: npu_ce_jit.CrossEntropyLoss(**n.options())(x, y)),
    "causal_lm": Form(lambda x, y, n: npu_ce_jit.causal_lm_loss(x, y, shift_labels=y, **n.options())),
    "linear": Form(lambda x, y, n: npu_ce_jit.linear_cross_entropy(x, head(), y, **n.options())),
    "drop-in": Form(drop_in, lambda n: {**n.smoothing(), "z_loss": n.share / 3}),
    "installed": Form(lambda x, y, n: F.cross_entropy(x, y, **n.smoothing()), Numbers.smoothing),
    # Each of these graphs takes seconds to compile.
    "vocab-parallel": Form(
        lambda x, y, n: parallel.vocab_parallel_cross_entropy(x, y, **n.options()),
        calls=(FIRST, SECOND, THIRD),
        ways=("aot_eager", "inductor"),
    ),
    "vocab-parallel linear": Form(
        lambda x, y, n: parallel.vocab_parallel_linear_cross_entropy(x, head(), y, **n.options()),
        calls=(FIRST, SECOND, THIRD),
        ways=("inductor",),
    ),
}


@pytest.fixture(autouse=True)
def _no_graphs() -> Iterator[None]:
    """Drops the graphs of other tests, in memory and on disk."""
    torch._dynamo.reset()
    with fresh_cache():
        yield
    npu_ce_jit.uninstall()


@pytest.fixture
def _group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@contextmanager
def compiling(way: Way) -> Iterator[Callable[..., Any]]:
    """torch.compile, with a compiler that leaves every operator to torch's kernels: Inductor's would take seconds."""
    with (
        inductor_config.patch(fallback_by_default=True, fx_graph_cache=way.has_caches),
        autograd_config.patch(enable_autograd_cache=way.has_caches),
    ):
        yield partial(torch.compile, backend=way.backend, dynamic=way.dynamic)


def factor(n: Numbers) -> float:
    return n.certainty * n.share * n.half_cap * n.temperature * n.place


def require_right(found: tuple[Tensor, Tensor], n: Numbers, options: Options, x: Tensor) -> None:
    """Fails unless a loss and its gradient are those of the formula."""
    expected = truth(x.detach().double(), TARGET, None, options).loss * factor(n)
    slope = gradient(x, TARGET, None, options, torch.tensor(factor(n)), torch.float64)
    reported = f"{n}: {{}}".format
    torch.testing.assert_close(found, (expected.float(), slope.float()), msg=reported)


def marks(way: str, name: str = "") -> list[pytest.MarkDecorator]:
    return [] if way in IN_SHORT and name not in ("causal_lm", "vocab-parallel linear") else [pytest.mark.exhaustive]


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(name, way, marks=marks(way, name)) for name, form in FORMS.items() for way in form.ways],
)
def test_each_call_is_of_its_own_numbers(name: str, way: str, request: pytest.FixtureRequest) -> None:
    form = FORMS[name]
    if name.startswith("vocab-parallel"):
        request.getfixturevalue("_group")
    if name == "installed":
        npu_ce_jit.install()
    x = torch.randn(len(TARGET), CLASSES, requires_grad=True)
    with compiling(WAYS[way]) as compile:
        compiled = compile(lambda x, n: form.loss(x, TARGET, n) * factor(n))
        for n in form.calls:
            loss = compiled(x, n)
            require_right((loss.detach(), *torch.autograd.grad(loss, x)), n, Options(**form.options(n)), x)


@pytest.mark.parametrize("way", [pytest.param(way, marks=marks(way)) for way in WAYS])
def test_the_drop_ins_backward(way: str) -> None:
    def step(log_prob: Tensor, lse: Tensor, n: Numbers) -> Tensor:
        scale = n.share / 3
        return factor(n) * npu_ce_jit.npu_cross_entropy_loss_backward(
            torch.ones(1), log_prob, TARGET, None, None, lse, lse_square_scale_for_zloss=scale, **n.smoothing()
        )

    x = torch.randn(len(TARGET), CLASSES)
    with compiling(WAYS[way]) as compile:
        compiled = compile(step)
        for n in CALLS:
            options = Options(**n.smoothing(), z_loss=n.share / 3)
            expected = gradient(x, TARGET, None, options, torch.tensor(factor(n)), torch.float64)
            found = compiled(x.log_softmax(1), x.logsumexp(1), n)
            torch.testing.assert_close(found, expected.float(), msg=f"{n}: {{}}".format)


@needs_the_library
def test_what_is_redirected_is_ours_whatever_has_changed() -> None:
    operators: list[Any] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        operators.extend(node.target for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload))
        return graph

    npu_ce_jit.install()
    compiled = torch.compile(FORMS["installed"].loss, backend=aot_autograd(fw_compiler=note))
    for n in CALLS:
        compiled(torch.randn(len(TARGET), CLASSES), TARGET, n)
    assert set(operators) == {torch.ops.npu_ce_jit._forward.default}
