# SPDX-License-Identifier: Apache-2.0
"""The code of the how-to pages in docs/, for the tests that run it."""

from __future__ import annotations

import re

import pytest
from locations import CHECKOUT

_DOCS = CHECKOUT / "docs"
needs_the_pages = pytest.mark.skipif(not _DOCS.is_dir(), reason="the pages are not installed with the package")


def code_of(page: str) -> list[str]:
    """The Python blocks of a page, in order; none where the pages are not installed."""
    file = _DOCS / page
    text = file.read_text("utf-8") if file.is_file() else ""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
