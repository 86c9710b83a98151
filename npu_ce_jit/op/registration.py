# SPDX-License-Identifier: Apache-2.0
"""Puts the operator into torch's dispatcher. What is registered here needs no compiled library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.library import Library, register_vmap

from npu_ce_jit.op import autograd, meta, operators, reference, schema, vmap
from npu_ce_jit.op.transforms import register_fake

# A registration lives as long as its Library object.
_definitions: Library | None = None
_kernels: Library | None = None


def define() -> None:
    """Schemas, Meta, autograd and vmap, once in a process."""
    global _definitions
    if _definitions is not None:
        return
    _definitions = library = Library(schema.NAMESPACE, "DEF")
    schema.define(library)
    ops = autograd.OPS

    for name, fake in (("_forward", meta.forward), ("_backward", meta.backward), ("_backward_", meta.backward_)):
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


def use_reference() -> None:
    """The plain torch kernels on CPU, for a machine where no library can be built."""
    _set_cpu_kernels(
        {"_forward": reference.forward, "_backward": reference.backward, "_backward_": reference.backward_}
    )


def use_lazy(load: Callable[[], bool]) -> None:
    """Kernels on CPU that call `load` once, at the first call: True when a library has registered its own."""

    def loading(name: str) -> Callable[..., Any]:
        def kernel(*arguments: Any) -> Any:
            release_cpu_kernels()
            if not load():
                use_reference()
            return getattr(autograd.OPS, name).default(*arguments)

        return kernel

    _set_cpu_kernels({name: loading(name) for name in schema.INTERNAL})


def release_cpu_kernels() -> None:
    """Takes the Python kernels on CPU away, so that a library can register its own without an override."""
    global _kernels
    if _kernels is not None:
        _kernels._destroy()
        _kernels = None


def _set_cpu_kernels(kernels: dict[str, Callable[..., Any]]) -> None:
    global _kernels
    release_cpu_kernels()
    _kernels = Library(schema.NAMESPACE, "IMPL")
    for name, kernel in kernels.items():
        _kernels.impl(name, kernel, "CPU")


def _define_public(
    library: Library, implementation: Callable[..., Any], recorded: Callable[..., Any], vmap_rule: Callable[..., Any]
) -> None:
    name = implementation.__name__
    library.impl(name, implementation, "CompositeExplicitAutograd")
    library.impl(name, recorded, "Autograd")
    register_fake(library, f"{schema.NAMESPACE}::{name}", implementation)
    register_vmap(f"{schema.NAMESPACE}::{name}", vmap_rule, lib=library)
