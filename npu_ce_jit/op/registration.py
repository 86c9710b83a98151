# SPDX-License-Identifier: Apache-2.0
"""Puts the operator into torch's dispatcher. What is registered here needs no compiled library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.library import Library

from npu_ce_jit.op import autograd, meta, operators, schema
from npu_ce_jit.op.transforms import register_fake, register_vmap

# A registration lives as long as its Library object.
_definitions: Library | None = None
# Loads a library at the first call that needs one; whether there is one now.
_load: Callable[[], bool] = bool


def define() -> None:
    """Schemas, Meta, autograd and vmap, once in a process."""
    global _definitions
    if _definitions is not None:
        return
    _definitions = library = Library(schema.NAMESPACE, "DEF")
    schema.define(library)

    for name, fake in (("_forward", meta.forward), ("_backward", meta.backward), ("_backward_", meta.backward_)):
        library.impl(name, _kernel_of_last_resort(name), "CompositeExplicitAutograd")
        register_fake(library, f"{schema.NAMESPACE}::{name}", fake)
    library.impl("_forward", autograd.forward_kernel, "Autograd")
    library.impl("_backward", autograd.backward_kernel, "Autograd")

    for public, recorded in (
        (operators.npu_cross_entropy_loss, partial(operators.npu_cross_entropy_loss, run=autograd.record_forward)),
        (operators.cross_entropy, partial(operators.cross_entropy, run=autograd.record_forward)),
        (operators.npu_cross_entropy_loss_backward, operators.record_npu_cross_entropy_loss_backward),
    ):
        name = public.__name__
        library.impl(name, public, "CompositeExplicitAutograd")
        library.impl(name, recorded, "Autograd")
        register_fake(library, f"{schema.NAMESPACE}::{name}", public)

    for name in schema.SCHEMAS:
        if name != "_backward_":  # nothing under a transform is written in place
            register_vmap(library, f"{schema.NAMESPACE}::{name}", partial(_vmap_rule, name))


def _vmap_rule(name: str) -> Callable[..., Any]:
    from npu_ce_jit.op import vmap  # an eager training step never needs it

    return vmap.RULES[name]


def use_lazy(load: Callable[[], bool]) -> None:
    """Has the first call run `load`: True when a library has registered its kernels, False for the reference."""
    global _load
    _load = load


def _kernel_of_last_resort(name: str) -> Callable[..., Any]:
    """What runs where no library has registered a kernel for the tensors' device.

    It stands under CompositeExplicitAutograd, to which the dispatcher turns when a device's own key is empty, so that
    a library that is loaded later takes over without this one being taken away under a running thread.
    """

    def kernel(*arguments: Any) -> Any:
        device = next(a for a in arguments if isinstance(a, Tensor)).device
        if device.type != "cpu":
            raise NotImplementedError(
                f"expected tensors on cpu, got {device}: this version of npu_ce_jit has kernels for the CPU only; "
                "call .cpu() on the tensors, or see `python -m npu_ce_jit doctor`"
            )
        if _load():
            return getattr(autograd.OPS, name).default(*arguments)
        from npu_ce_jit.op import reference  # not needed where a library is

        return getattr(reference, name.removeprefix("_"))(*arguments)

    return kernel
