# SPDX-License-Identifier: Apache-2.0
"""Whether there is an NPU to use, and whether the kernels are made for its chip. Asking makes no device context."""

from __future__ import annotations

import torch

from npu_ce_jit.errors import ToolchainError

_SUPPORTED = ("Ascend910B", "Ascend910_93")  # prefixes of the chip names of Atlas A2 and A3
_HINT = "See `npu-smi info`; in a container, mount the devices and /usr/local/Ascend/driver."


def require_supported_chip(name: str, hint: str) -> None:
    """Raises ToolchainError, with `hint`, for a chip that is neither an Atlas A2 nor an A3."""
    if not name.startswith(_SUPPORTED):
        raise ToolchainError(
            f"Expected a chip of Atlas A2 or A3, whose name begins with {' or '.join(_SUPPORTED)}, got {name}.", hint
        )


def require_npu() -> torch.device:
    """The first NPU. Raises ToolchainError with what torch_npu says where there is none."""
    try:
        import torch_npu  # type: ignore[import-not-found]  # noqa: F401  it defines torch.npu

        count = torch.get_device_module("npu").device_count()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ToolchainError(f"No NPU: torch_npu raised {type(error).__name__}: {reason}.", _HINT) from error
    if not count:
        raise ToolchainError("No NPU: torch_npu sees no device.", _HINT)
    return torch.device("npu", 0)
