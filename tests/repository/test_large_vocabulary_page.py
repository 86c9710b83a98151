# SPDX-License-Identifier: Apache-2.0
"""docs/large-vocabulary.md: its code runs from top to bottom, and its comparisons with torch hold."""

from __future__ import annotations

from pages import code_of, needs_the_pages


@needs_the_pages
def test_the_code_runs() -> None:
    blocks, names = code_of("large-vocabulary.md"), {}
    for block in blocks:
        exec(block, names)
    assert sum("assert_close" in block for block in blocks) == 2
