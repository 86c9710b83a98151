# SPDX-License-Identifier: Apache-2.0
"""Registers the operators with torch's dispatcher: their schemas, and the kernels that need no compiled library."""

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

_EVERY_DEVICE = "CompositeExplicitAutograd"  # runs where no kernel is registered under a device's own key
_FAKE, _VMAP = "fake", "vmap"  # not dispatch keys: for register_fake and register_vmap


def _kernels() -> dict[str, dict[str, Callable[..., Any]]]:
    """The kernels by operator and dispatch key. Those of CPU and PrivateUse1 (an NPU) come from compiled libraries.

    `_backward_` has no vmap rule, as nothing is written in place under a transform; nor has `_linear`, as the linear
    loss is composed of other operators there.
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


# The operators that a compiled library has kernels for, and what computes where there is no library.
_NATIVE: dict[str, Callable[..., Any]] = {
    "_forward": lazy_kernels.reference_forward,
    "_backward": lazy_kernels.reference_backward,
    "_backward_": lazy_kernels.reference_backward_,
}


class _Registered:
    """What this process has registered from Python; each part lasts as long as its Library object.

    It is kept in torch's namespace of the operators, so that a second import of this package finds what the first one
    has registered: notebooks reload modules and take them out of sys.modules.
    """

    NAME = "_registered_from_python"

    def __init__(self) -> None:
        self.schemas = dict(schema.SCHEMAS)
        self.definitions = Library(schema.NAMESPACE, "DEF")  # never withdrawn: compiled graphs hold the operators
        schema.define(self.definitions)
        self.kernels: Library | None = None  # those that are written in Python
        self.covers: dict[str, Library] = {}  # by dispatch key, what overrides a compiled library's kernels
        # Loads a library at the first call that needs one; returns whether this device has one then.
        self.load: Callable[[torch.device], bool] | None = None


def _registered() -> _Registered:
    registered: _Registered | None = vars(functions.OPS).get(_Registered.NAME)
    if registered is None:
        registered = _Registered()
        setattr(functions.OPS, _Registered.NAME, registered)
    return registered


def define() -> None:
    """Registers schemas, Meta, autograd and vmap, replacing an earlier import's; meanwhile no thread may call them.

    Raises NpuCeJitError where an operator is no longer what this process has defined.
    """
    registered = _registered()
    if registered.schemas != schema.SCHEMAS:
        raise NpuCeJitError(
            f"Another version of this package has defined the operators torch.ops.{schema.NAMESPACE} in this process.",
            "Start a new Python.",
        )
    registered.kernels = None  # withdraws the earlier ones first: one registration cannot override another
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


# What is registered as soon as a module of torch's is imported. Not at the first call: each flop counter copies the
# registry, and that call may have a DTensor. Not here: importing either module would use up a sixth or more of the time
# that an import of this package may take.
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
    """Makes a call that finds no kernel run `load`, which may register one and returns whether it has."""
    _registered().load = load


def cover(device: torch.device) -> None:
    """Overrides a library's kernels with the fallback kernels; what the library has registered stays below them."""
    key = _dispatch_key(device)
    _registered().covers[key] = library = Library(schema.NAMESPACE, "IMPL", key)
    for name in _NATIVE:
        override(library, name, _fallback_kernel(name))


def uncover(device: torch.device) -> None:
    """Undoes `cover`, where the device is covered."""
    _registered().covers.pop(_dispatch_key(device), None)


def _fallback_kernel(name: str) -> Callable[..., Any]:
    """The kernel that runs where no library has registered one for the tensors' device.

    It is registered under CompositeExplicitAutograd, which the dispatcher uses where a device's own key is empty. So a
    library that is loaded later takes over, and this kernel need not be removed while a thread may be running it.
    """
    reference = _NATIVE[name]

    def kernel(*arguments: Any) -> Any:
        devices = [a.device for a in arguments if isinstance(a, Tensor)]
        # As the dispatcher chooses: where tensors are on several devices, it does not call the CPU's kernel.
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
