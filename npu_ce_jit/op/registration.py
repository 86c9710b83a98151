# SPDX-License-Identifier: Apache-2.0
"""Puts the operator into torch's dispatcher. What is registered here needs no compiled library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from npu_ce_jit.errors import NpuCeJitError
from npu_ce_jit.op import lazy_kernels, operators, schema
from npu_ce_jit.op.autograd import functions
from npu_ce_jit.op.torch_private import register_fake, register_vmap
from npu_ce_jit.torch_compat import override

_EVERY_DEVICE = "CompositeExplicitAutograd"  # where a device's own key is empty
_FAKE, _VMAP = "fake", "vmap"  # no keys of the dispatcher: torch.library.register_fake and register_vmap


def _kernels() -> dict[str, dict[str, Callable[..., Any]]]:
    """By operator and dispatch key, what computes. Keys CPU and PrivateUse1 (an NPU) are the compiled libraries'.

    Nothing under a transform is written in place, so `_backward_` has no rule of vmap; the linear loss is composed of
    others there.
    """
    return {
        "_forward": {
            _EVERY_DEVICE: _fallback_kernel("_forward"),
            "Autograd": functions.forward_kernel,
            "Meta": lazy_kernels.meta_forward,
            _VMAP: lazy_kernels.forward_rule,
        },
        "_backward": {
            _EVERY_DEVICE: _fallback_kernel("_backward"),
            "Autograd": functions.backward_kernel,
            "Meta": lazy_kernels.meta_backward,
            _VMAP: lazy_kernels.backward_rule,
        },
        "_backward_": {
            _EVERY_DEVICE: _fallback_kernel("_backward_"),
            "Meta": lazy_kernels.meta_backward_,
        },
        "_linear": {
            _EVERY_DEVICE: lazy_kernels.linear,
            "Autograd": lazy_kernels.record_linear,
            "Meta": lazy_kernels.meta_linear,
        },
        "cross_entropy": {
            _EVERY_DEVICE: operators.cross_entropy,
            "Autograd": operators.record_cross_entropy,
            _FAKE: operators.cross_entropy,
            _VMAP: lazy_kernels.cross_entropy_rule,
        },
        "npu_cross_entropy_loss": {
            _EVERY_DEVICE: operators.npu_cross_entropy_loss,
            "Autograd": operators.record_npu_cross_entropy_loss,
            _FAKE: operators.npu_cross_entropy_loss,
            _VMAP: lazy_kernels.npu_cross_entropy_loss_rule,
        },
        "npu_cross_entropy_loss_backward": {
            _EVERY_DEVICE: operators.npu_cross_entropy_loss_backward,
            "Autograd": operators.record_npu_cross_entropy_loss_backward,
            _FAKE: operators.npu_cross_entropy_loss_backward,
            _VMAP: lazy_kernels.npu_cross_entropy_loss_backward_rule,
        },
        "linear_cross_entropy": {
            _EVERY_DEVICE: lazy_kernels.linear_cross_entropy,
            "Autograd": lazy_kernels.record_linear_cross_entropy,
            "FuncTorchBatched": lazy_kernels.batch_linear_cross_entropy,
            _FAKE: lazy_kernels.linear_cross_entropy,
        },
    }


# What a library has kernels for, and what computes where there is none.
_NATIVE: dict[str, Callable[..., Any]] = {
    "_forward": lazy_kernels.reference_forward,
    "_backward": lazy_kernels.reference_backward,
    "_backward_": lazy_kernels.reference_backward_,
}


class _Registered:
    """What this process has registered from Python; each part lasts as long as its Library object.

    Torch's namespace of the operators holds it, where an import of this package finds what an earlier one of the same
    process left: notebooks reload modules and take them out of sys.modules.
    """

    NAME = "_registered_from_python"

    def __init__(self) -> None:
        self.schemas = dict(schema.SCHEMAS)
        self.definitions = Library(schema.NAMESPACE, "DEF")  # never withdrawn: compiled graphs hold the operators
        schema.define(self.definitions)
        self.kernels: Library | None = None  # those that are written in Python
        self.covers: dict[str, Library] = {}  # of what a library has registered, by dispatch key
        # Loads a library at the first call that needs one; whether there is one for this device now.
        self.load: Callable[[torch.device], bool] | None = None


def _registered() -> _Registered:
    registered: _Registered | None = vars(functions.OPS).get(_Registered.NAME)
    if registered is None:
        registered = _Registered()
        setattr(functions.OPS, _Registered.NAME, registered)
    return registered


def define() -> None:
    """Schemas, Meta, autograd and vmap, in the place of those of an earlier import; meanwhile no thread may call.

    Raises NpuCeJitError where an operator is no longer what this process has defined.
    """
    registered = _registered()
    if registered.schemas != schema.SCHEMAS:
        raise NpuCeJitError(
            f"Another version of this package has defined the operators torch.ops.{schema.NAMESPACE} in this process.",
            "Start a new Python.",
        )
    registered.kernels = None  # withdraws them: none overrides another
    registered.kernels = library = Library(schema.NAMESPACE, "IMPL")

    for name, kernels in _kernels().items():
        for key, kernel in kernels.items():
            if key == _FAKE:
                register_fake(library, f"{schema.NAMESPACE}::{name}", kernel)
            elif key == _VMAP:
                register_vmap(library, f"{schema.NAMESPACE}::{name}", kernel)
            else:
                library.impl(name, kernel, key)

    for name, register in _WITH_TORCHS_MODULE.items():
        if name in sys.modules:
            register()
        else:
            sys.meta_path.insert(0, _ImportFinder(name, register))


def _register_flops() -> None:
    from npu_ce_jit.op.tracing import flops

    flops.register()


def _register_dtensors() -> None:
    from npu_ce_jit.op.distributed import dtensor

    dtensor.register()


# What is registered as soon as this module of torch's is imported: each flop counter copies the registry, and a DTensor
# may be in the first call. To import either here would take a sixth or more of the time that an import of this package
# may take.
_WITH_TORCHS_MODULE = {"torch.utils.flop_counter": _register_flops, "torch.distributed.tensor": _register_dtensors}


class _ImportFinder:
    """Calls `register` after the first import of a module."""

    def __init__(self, name: str, register: Callable[[], None]) -> None:
        self._name = name
        self._register = register

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            self._register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def use_loader(load: Callable[[torch.device], bool]) -> None:
    """Has a call for which no kernel is registered run `load`, which may register one: True where it has."""
    _registered().load = load


def cover(device: torch.device) -> None:
    """Takes a library's kernels out of use: what it has registered stays, below the fallback kernels."""
    key = _dispatch_key(device)
    _registered().covers[key] = library = Library(schema.NAMESPACE, "IMPL", key)
    for name in _NATIVE:
        override(library, name, _fallback_kernel(name))


def uncover(device: torch.device) -> None:
    """Puts what is registered for this device to use again, where it is covered."""
    _registered().covers.pop(_dispatch_key(device), None)


def _fallback_kernel(name: str) -> Callable[..., Any]:
    """What runs where no library has registered a kernel for the tensors' device.

    It stands under CompositeExplicitAutograd, to which the dispatcher turns when a device's own key is empty, so that
    a library that is loaded later takes over without this one being taken away under a running thread.
    """
    reference = _NATIVE[name]

    def kernel(*arguments: Any) -> Any:
        devices = [a.device for a in arguments if isinstance(a, Tensor)]
        # As the dispatcher chooses: where tensors are on several, the CPU's kernel is not the one that is called.
        device = next((device for device in devices if device.type != "cpu"), devices[0])
        key = _dispatch_key(device)
        load = _registered().load
        if key in ("CPU", "PrivateUse1") and load is not None and load(device):
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"{schema.NAMESPACE}::{name}", key):
                return getattr(functions.OPS, name).default(*arguments)
            raise NotImplementedError(f"expected a kernel of {name} for {device.type} in the library, got none")
        if key != "CPU":
            raise NotImplementedError(
                f"expected tensors on cpu or on an Ascend NPU, got {device}; "
                "call .cpu() on them, or see `python -m npu_ce_jit doctor`"
            )
        return reference(*arguments)

    return kernel


def _dispatch_key(device: torch.device) -> str:
    return torch._C._dispatch_key_for_device(device.type)
