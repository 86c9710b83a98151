# SPDX-License-Identifier: Apache-2.0
"""torch.compile over torch.func and forward AD of the three forms, and compiled autograd, against F.cross_entropy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from forms import FORMS, gradients, operands, theirs
from torch import Tensor, func
from torch.autograd import forward_ad

TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: func.grad(f)(x),
    "vjp": lambda f, x: func.vjp(f, x)[1](x.new_ones(()))[0],
    "jvp": lambda f, x: func.jvp(f, (x,), (x.cos(),)),
    "vmap": lambda f, x: func.vmap(f)(torch.stack((x, x.sin()))),
    "jacrev": lambda f, x: func.jacrev(f)(x),
    "jacfwd": lambda f, x: func.jacfwd(f)(x),
    "hessian": lambda f, x: func.hessian(f)(x),
    "vmap(grad)": lambda f, x: func.vmap(func.grad(f))(torch.stack((x, x.sin()))),
    "grad(vmap)": lambda f, x: func.grad(lambda y: func.vmap(f)(y).sum())(torch.stack((x, x.sin()))),
    "grad(jvp)": lambda f, x: func.grad(lambda y: func.jvp(f, (y,), (y.cos(),))[1])(x),
    "jacfwd(jacfwd)": lambda f, x: func.jacfwd(func.jacfwd(f))(x),
}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    """Each test compiles the same code for other losses, and torch allows eight recompilations."""
    torch._dynamo.reset()


def dual_level(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent


@pytest.mark.feature("torch.compile over torch.func")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("form", FORMS)
def test_transforms_inside_of_a_compiled_function(form: str, transform: str) -> None:
    hidden, *others = operands()

    def transformed(loss: Callable[..., Tensor], x: Tensor) -> Any:
        return TRANSFORMS[transform](lambda y: loss(y, *others) ** 2, x)

    compiled = torch.compile(partial(transformed, FORMS[form].loss), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(hidden), transformed(theirs, hidden), rtol=1e-9, atol=1e-9)


@pytest.mark.feature("torch.compile over forward AD")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_that_a_graph_enters_past_python(form: str, backend: str) -> None:
    """If Python's count of dual levels decided, the tangent would be None, and count as zero."""
    hidden, *others = operands()
    results = [
        torch.compile(lambda x, loss=loss: dual_level(lambda y: loss(y, *others), x), backend=backend, fullgraph=True)(
            hidden
        )
        for loss in (FORMS[form].loss, theirs)
    ]
    torch.testing.assert_close(*results)


@pytest.mark.feature("compiled autograd")
@pytest.mark.parametrize("form", FORMS)
def test_compiled_autograd(form: str, device: torch.device) -> None:
    tensors = [tensor.to(device) for tensor in operands(dtype=torch.float32)]
    expected = gradients(FORMS[form].loss, *tensors)[1:]
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:2]]
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        FORMS[form].loss(*leaves, *tensors[2:]).backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad.cpu(), gradient.cpu())
