# SPDX-License-Identifier: Apache-2.0
"""Differences between the versions of torch that this package supports.

Beside each difference is the version that ended it; the code is deleted when that version is the oldest supported. All
other Python is written for the newest torch and checks no version; `csrc/glue/torch_compat.h` is the same for C++.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import backend_registration

from npu_ce_jit.errors import NpuCeJitError

OLDEST, NEWEST = (2, 7), (2, 15)  # the tests have run on these; pyproject.toml's lower bound is a release of OLDEST
_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


def untested_torch() -> NpuCeJitError | None:
    """What to say of a torch that the tests have not run on. It is tried: an upper bound would have pip replace it."""
    if OLDEST <= _VERSION <= NEWEST:
        return None
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
    return NpuCeJitError(
        f"expected torch {oldest} to {newest}, which this npu_ce_jit was tested with, got {torch.__version__}.",
        "Run `python -m npu_ce_jit demo`, which tells whether it works; a newer npu_ce_jit may know this torch.",
    )


# Since 2.14, torch's C++ headers that the NPU glue includes are C++20.
NPU_GLUE_STANDARD = "-std=c++20" if _VERSION >= (2, 14) else "-std=c++17"
# Before 2.10, at::parallel_for is inline in torch's headers and starts its threads by OpenMP. The wheels for aarch64
# bring the OpenMP runtime under a name of their own: with the compiler's there would be two, and torch.set_num_threads
# would set only one of them.
OPENMP_COMPILE: tuple[str, ...] = ()
OPENMP_LINK: tuple[str, ...] = ()
OPENMP_DIRS: tuple[str, ...] = ()
if _VERSION < (2, 10):
    _runtimes = sorted(Path(torch.__file__).parent.with_name("torch.libs").glob("libgomp*.so*"))
    OPENMP_COMPILE = ("-fopenmp",)
    OPENMP_LINK = ("-Wl,--as-needed", *(f"-l:{file.name}" for file in _runtimes), "-fopenmp")
    OPENMP_DIRS = tuple(str(file.parent) for file in _runtimes)

if hasattr(nn, "LinearCrossEntropyLoss"):  # 2.13
    from torch.nn import LinearCrossEntropyLoss as LinearCrossEntropyLoss
    from torch.nn import LinearCrossEntropyOptions as LinearCrossEntropyOptions
else:

    @dataclass
    class LinearCrossEntropyOptions:  # type: ignore[no-redef]
        """The fields of torch.nn.LinearCrossEntropyOptions, and its checks of their words."""

        allow_retain_graph: bool = False
        batch_chunk_size: int | None = None
        chunking_method: str | None = "auto"
        acc_policy: str = "auto"
        acc_dtype: torch.dtype | None = None

        def __post_init__(self) -> None:
            if self.acc_policy not in ("auto", "accurate", "balanced", "compact"):
                raise ValueError(f"invalid acc_policy: {self.acc_policy!r}")
            name, _, factor = (self.chunking_method or "auto").partition(":")
            if name not in ("auto", "aspect_ratio") or not (factor or "1").isdigit() or factor == "0":
                raise ValueError(f"invalid chunking_method: {self.chunking_method!r}")

    class LinearCrossEntropyLoss(nn.Module):  # type: ignore[no-redef]
        """The arguments and parameters of torch.nn.LinearCrossEntropyLoss, by its names: state dicts fit both."""

        def __init__(
            self,
            in_features: int,
            num_classes: int,
            *,
            out_features: tuple[int, ...] = (),
            bias: bool = False,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
            reduction: str = "mean",
            weight: Tensor | None = None,
            ignore_index: int | None = None,
            label_smoothing: float = 0.0,
            options: LinearCrossEntropyOptions | None = None,
        ) -> None:
            if weight is not None and weight.shape != (num_classes,):
                raise RuntimeError(f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}")
            if not 0 <= label_smoothing <= 1:
                raise RuntimeError(f"expected label_smoothing to be in range [0, 1], got {label_smoothing}")
            super().__init__()
            self.register_buffer("weight", weight)
            self.num_classes, self.out_features = num_classes, out_features
            self.reduction, self.ignore_index, self.label_smoothing = reduction, ignore_index, label_smoothing
            self.linear = nn.Linear(in_features, num_classes * prod(out_features), bias, device, dtype)
            self.options = options

        def extra_repr(self) -> str:
            return (
                f"in_features={self.linear.in_features}, num_classes={self.num_classes}, "
                f"out_features={self.out_features}, bias={self.linear.bias is not None}, reduction={self.reduction}, "
                f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, options={self.options}"
            )


# None before 2.10, the first torch with devices whose backend is written in Python.
set_up_python_backend: Callable[..., None] | None = getattr(
    backend_registration, "_setup_privateuseone_for_python_backend", None
)


def traced_constant(value: Any) -> Any:
    """A number that torch.compile may trace as a symbol, made a constant with a guard on its value."""
    if _VERSION >= (2, 8):
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        return guard_scalar(value)
    if isinstance(value, bool):
        return value
    text = f"{value!r}"  # the one operation traced before 2.8 that needs the value, and so guards it
    return float(text) if isinstance(value, float) else int(text)


def is_autocast(device: str) -> bool:
    """torch.is_autocast_enabled, or False. torch.compile traces is_autocast_available only since 2.11."""
    return device in ("cpu", "npu", "cuda") and torch.is_autocast_enabled(device)


if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):  # 2.8

    def has_saved_tensors_hooks() -> bool:
        """Whether a checkpoint, or another hook of saved tensors, is active."""
        return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None

else:

    def has_saved_tensors_hooks() -> bool:
        """Whether a checkpoint, or another hook of saved tensors, is active: torch refuses to disable them then."""
        if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
            return False
        try:
            torch._C._autograd._saved_tensors_hooks_disable("asked whether there are any")
        except RuntimeError:
            return True
        finally:  # hooks are disabled even where it raises
            torch._C._autograd._saved_tensors_hooks_enable()
        return False


_ALLOW_OVERRIDE = {"allow_override": True} if _VERSION >= (2, 8) else {}  # before, torch refuses a second Python kernel


def override(
    library: torch.library.Library, name: str, kernel: Callable[..., Any], key: str = "", with_keyset: bool = False
) -> None:
    """Registers a kernel in the place of another for as long as the library lives, without torch's warning of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not _ALLOW_OVERRIDE:
            torch.library._impls.discard("/".join((library.ns, name, key or library.dispatch_key)))
        library.impl(name, kernel, key, with_keyset=with_keyset, **_ALLOW_OVERRIDE)


def forget_graphs() -> None:
    """Has torch.compile compile again what it has compiled, since a function of torch's has other code now.

    Since 2.10 a graph has a guard on the code of each function that was traced into it.
    """
    if _VERSION < (2, 10) and "torch._dynamo" in sys.modules:
        torch._dynamo.reset_code_caches()


# Since 2.8, fully_shard can be told to sum gradients instead of averaging them.
SET_GRADIENT_DIVIDE_FACTOR = "set_gradient_divide_factor" if _VERSION >= (2, 8) else None


def averaging_groups(state: Any) -> list[dist.ProcessGroup]:
    """The process groups over which fully_shard averages gradients, from a module's state; none for other wrappers'."""
    from torch.distributed.fsdp._fully_shard._fsdp_common import DDPMeshInfo, FSDPMeshInfo
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    if not isinstance(state, FSDPState):
        return []
    if _VERSION >= (2, 12):
        parameters = list(state._fsdp_param_groups)
    else:
        parameters = [one for one in (state._fsdp_param_group,) if one is not None]
    if SET_GRADIENT_DIVIDE_FACTOR:
        parameters = [one for one in parameters if one.gradient_divide_factor != 1]
    found = []
    for mesh in (one.mesh_info for one in parameters):
        if isinstance(mesh, FSDPMeshInfo):
            found.append(mesh.shard_process_group)
        if isinstance(mesh, DDPMeshInfo):
            found.append(mesh.replicate_process_group)
    return found


def fake_options(library: torch.library.Library) -> dict[str, Any]:
    """Options that tie a fake kernel to the library's lifetime; before 2.8 the registration handle alone does."""
    return {"lib": library, "allow_override": False} if _VERSION >= (2, 8) else {}


@cache
def single_level(function: type[torch.autograd.Function]) -> Any:
    """`function` as the class of the kind that torch.func makes for one level; since 2.14, `apply` requires that."""
    methods = {name: vars(function)[name] for name in ("forward", "setup_context", "backward", "jvp")}
    return type(function.__name__, (torch.autograd.function._SingleLevelFunction,), methods)


def redirect_operator(namespace: str, name: str, keys: Sequence[str], ours: Callable[..., Any]) -> Callable[[], None]:
    """Has another package's operator call `ours(theirs, *arguments)`; returns the function that undoes it.

    It replaces the kernels under the dispatch keys `keys`, which torch hands out since 2.9; before, it replaces what
    torch.ops calls, which compiled graphs bypass.
    """
    if not hasattr(torch.library, "get_kernel"):
        return _redirect_calls(getattr(getattr(torch.ops, namespace), name), ours)
    theirs = {key: torch.library.get_kernel(f"{namespace}::{name}", key) for key in keys}
    library = torch.library.Library(namespace, "IMPL")
    for key, kernel in theirs.items():

        def redirecting(keyset: Any, *arguments: Any, kernel: Any = kernel) -> Any:
            return ours(partial(kernel.call_boxed, keyset), *arguments)

        override(library, name, redirecting, key, with_keyset=True)
    return library._destroy


def _redirect_calls(packet: Any, ours: Callable[..., Any]) -> Callable[[], None]:
    theirs, parameters = packet._op, packet.default._schema.arguments

    def redirecting(*arguments: Any, **named: Any) -> Any:
        rest = parameters[len(arguments) :]
        if named.keys() <= {parameter.name for parameter in rest}:
            filled = (*arguments, *(named.get(parameter.name, parameter.default_value) for parameter in rest))
            return ours(theirs, *filled)
        return theirs(*arguments, **named)  # raises, naming the wrong argument

    def undo() -> None:
        packet._op = theirs

    packet._op = redirecting
    return undo
