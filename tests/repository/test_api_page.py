# SPDX-License-Identifier: Apache-2.0
"""docs/api.md lists every public name."""

from __future__ import annotations

import re

from locations import CHECKOUT
from pages import needs_the_pages

import npu_ce_jit

pytestmark = needs_the_pages


def test_every_public_name_is_there_once() -> None:
    text = (CHECKOUT / "docs" / "api.md").read_text("utf-8")
    shown = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted({*npu_ce_jit.__all__} - {"__version__", "patch"})
    assert re.findall(r"^\.\. automodule:: (\S+)\n +:members:$", text, re.MULTILINE) == [
        "npu_ce_jit.patch", "npu_ce_jit.parallel",
    ]  # fmt: skip
