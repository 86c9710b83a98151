# SPDX-License-Identifier: Apache-2.0
"""A fact about this machine, and why we believe it."""

from typing import NamedTuple

from npu_ce_jit.errors import ToolchainError


class Finding(NamedTuple):
    """`value`, and `where` it was found; or None, where it was looked for, and in `hint` what to do."""

    name: str
    value: str | None
    where: str
    hint: str = ""

    def require(self) -> str:
        """The value. Raises ToolchainError with the hint where there is none."""
        if self.value is None:
            raise ToolchainError(f"No {self.name}: {self.where}.", self.hint)
        return self.value
