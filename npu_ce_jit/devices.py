# SPDX-License-Identifier: Apache-2.0
"""Whether there is an NPU to use. Asking makes no device context."""

from __future__ import annotations

import torch

from npu_ce_jit.errors import ToolchainError

_CURE = "See `npu-smi info`; in a container, mount the devices and /usr/local/Ascend/driver."


def require_npu() -> torch.device:
    """The first NPU. Raises ToolchainError with what torch_npu says where there is none."""
    try:
        import torch_npu  # type: ignore[import-not-found]  # noqa: F401  it brings torch.npu

        count = torch.get_device_module("npu").device_count()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ToolchainError(f"No NPU: torch_npu raised {type(error).__name__}: {reason}.", _CURE) from error
    if not count:
        raise ToolchainError("No NPU: torch_npu sees no device.", _CURE)
    return torch.device("npu", 0)
