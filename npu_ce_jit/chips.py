# SPDX-License-Identifier: Apache-2.0
"""The chips that the NPU kernels are made for."""

from __future__ import annotations

from npu_ce_jit.errors import ToolchainError

_SUPPORTED = ("Ascend910B", "Ascend910_93")  # what the names of Atlas A2 and A3 begin with


def require_supported(name: str, hint: str) -> None:
    """Raises ToolchainError, with `hint`, for a chip of another kind."""
    if not name.startswith(_SUPPORTED):
        raise ToolchainError(
            f"Expected a chip of Atlas A2 or A3, whose name begins with {' or '.join(_SUPPORTED)}, got {name}.", hint
        )
