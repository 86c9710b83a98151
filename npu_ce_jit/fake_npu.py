# SPDX-License-Identifier: Apache-2.0
"""A fake `npu` device for torch where torch_npu is absent: tensors without data, to trace and to export with.

Everything private to torch that this takes is here.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch.library import Library

from npu_ce_jit.errors import FakeNpuError
from npu_ce_jit.torch_compat import set_up_python_backend

_UNNAMED = "privateuseone"  # torch's name for PrivateUse1, the key of out-of-tree backends, until one renames it


def register_fake_npu() -> None:
    """Gives torch a fake `npu` device, for FakeTensorMode, torch.export and make_fx on a machine without an NPU.

    Once per process and for good; further calls do nothing. `torch.npu.is_available()` is False, and whatever would
    need the data of an npu tensor raises FakeNpuError.

    Raises:
        FakeNpuError: torch_npu is installed, another backend has taken the place, or torch is older than 2.10.
    """
    name = torch._C._get_privateuse1_backend_name()
    registered = getattr(torch, name, None)
    if getattr(registered, "is_fake", False):
        return
    if find_spec("torch_npu") is not None:
        raise FakeNpuError(
            "expected a Python without torch_npu for a fake npu, got one where it is installed.",
            "Import torch_npu and trace on its npu device; where it lacks CANN, use an environment without torch_npu.",
        )
    if name != _UNNAMED or registered is not None:
        raise FakeNpuError(
            f"expected torch without a backend of its own kind for a fake npu, got {name!r}: there is room for one.",
            "Call npu_ce_jit.register_fake_npu() in a process that does not import that backend.",
        )
    if set_up_python_backend is None:
        raise FakeNpuError(
            f"expected torch 2.10 or later for a fake npu, got {torch.__version__}.",
            "Trace with torch 2.10 or later, or where torch_npu and an NPU are.",
        )
    set_up_python_backend("npu", backend_module=_FakeNpu())


class _FakeNpu:
    """`torch.npu`: what torch asks a backend for. Kept by torch, so it outlives a reload of this package."""

    is_fake = True

    def __init__(self) -> None:
        # The fallback of every operator without an npu kernel, which is every operator that would read data.
        self._refusal = Library("_", "IMPL", "PrivateUse1")
        self._refusal.fallback(_refuse)

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """Nothing random is drawn on it."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        raise FakeNpuError(
            "expected no autocast on a fake npu, got one: which operators it casts is known to torch_npu alone.",
            "Cast in the model (.bfloat16()), or export where torch_npu is installed.",
        )


def _refuse(operator: Any, *_: Any, **__: Any) -> Any:
    raise FakeNpuError(
        f"expected FakeTensors on the fake npu, got {operator.name()} on real ones: this npu has shapes and no data.",
        "Make the tensors under torch._subclasses.FakeTensorMode(); to compute, run it where torch_npu and an NPU are.",
    )
