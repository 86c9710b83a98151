# SPDX-License-Identifier: Apache-2.0
"""Puts the operator into torch's dispatcher. What is registered here needs no compiled library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.library import Library, register_vmap

from npu_ce_jit.op import autograd, meta, operators, reference, schema, vmap
from npu_ce_jit.op.transforms import register_fake

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
    ops = autograd.OPS

    for name, on_cpu, fake in (
        ("_forward", reference.forward, meta.forward),
        ("_backward", reference.backward, meta.backward),
        ("_backward_", reference.backward_, meta.backward_),
    ):
        library.impl(name, _kernel_of_last_resort(name, on_cpu), "CompositeExplicitAutograd")
        register_fake(library, f"{schema.NAMESPACE}::{name}", fake)
    library.impl("_forward", autograd.forward_kernel, "Autograd")
    library.impl("_backward", autograd.backward_kernel, "Autograd")
    register_vmap(f"{schema.NAMESPACE}::_forward", vmap.forward_rule, lib=library)
    register_vmap(f"{schema.NAMESPACE}::_backward", vmap.backward_rule, lib=library)

    for loss in (operators.npu_cross_entropy_loss, operators.cross_entropy):
        _define_public(library, loss, partial(loss, run=autograd.record_forward), vmap.loss_rule(loss))
    backward = operators.npu_cross_entropy_loss_backward
    _define_public(
        library,
        backward,
        operators.record_npu_cross_entropy_loss_backward,
        vmap.one_by_one_rule(ops.npu_cross_entropy_loss_backward.default),
    )


def use_lazy(load: Callable[[], bool]) -> None:
    """Has the first call run `load`: True when a library has registered its kernels, False for the reference."""
    global _load
    _load = load


def _kernel_of_last_resort(name: str, on_cpu: Callable[..., Any]) -> Callable[..., Any]:
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
        return getattr(autograd.OPS, name).default(*arguments) if _load() else on_cpu(*arguments)

    return kernel


def _define_public(
    library: Library, implementation: Callable[..., Any], recorded: Callable[..., Any], vmap_rule: Callable[..., Any]
) -> None:
    name = implementation.__name__
    library.impl(name, implementation, "CompositeExplicitAutograd")
    library.impl(name, recorded, "Autograd")
    register_fake(library, f"{schema.NAMESPACE}::{name}", implementation)
    register_vmap(f"{schema.NAMESPACE}::{name}", vmap_rule, lib=library)
