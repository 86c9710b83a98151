# SPDX-License-Identifier: Apache-2.0
"""docs/zh/ translates every how-to page: same code, sections, tables and links; each page links to the other."""

from __future__ import annotations

import re
from itertools import zip_longest
from pathlib import Path

import pytest
from locations import CHECKOUT
from pages import needs_the_pages

DOCS = CHECKOUT / "docs"
READMES = [(CHECKOUT / name).read_text("utf-8") if DOCS.is_dir() else "" for name in ("README.md", "README.zh-CN.md")]
HOW_TO = re.findall(r"\]\(docs/zh/([\w-]+\.md)\)", READMES[1])
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

pytestmark = needs_the_pages
of_every_page = pytest.mark.parametrize("page", HOW_TO)


def _code(file: Path) -> list[str]:
    """The code blocks in order: fenced blocks as a whole, indented ones by line."""
    text = file.read_text("utf-8")
    return [*FENCED.findall(text), *re.findall(r"^    \S.*$", FENCED.sub("", text), re.MULTILINE)]


def _prose(file: Path) -> str:
    return FENCED.sub("", file.read_text("utf-8"))


def _links(file: Path) -> set[Path]:
    return {(file.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", _prose(file))}


def _tables(file: Path) -> list[int]:
    """The number of rows of each hand-written table; generated tables are on the English page only."""
    by_hand = re.sub(r"^<!-- \w+: .*?^<!-- end -->$", "", _prose(file), flags=re.MULTILINE | re.DOTALL)
    return [table.count("\n") for table in re.findall(r"(?:^\|.*\n)+", by_hand, re.MULTILINE)]


def test_every_how_to_page_is_translated() -> None:
    english = re.findall(r"^\| \[.*?\]\(docs/([\w-]+\.md)\)", READMES[0], re.MULTILINE)
    assert len(english) >= 8
    assert english == HOW_TO
    assert {file.name for file in (DOCS / "zh").glob("*.md")} == {*english, "index.md"}


@of_every_page
def test_the_code_is_the_same(page: str) -> None:
    for number, (english, chinese) in enumerate(zip_longest(_code(DOCS / page), _code(DOCS / "zh" / page))):
        assert chinese == english, f"block {number} of {page}"
    assert _code(DOCS / page)


@of_every_page
def test_sections_and_tables_are_as_many(page: str) -> None:
    def levels(file: Path) -> list[str]:
        return re.findall(r"^(#+) ", _prose(file), re.MULTILINE)

    english, chinese = DOCS / page, DOCS / "zh" / page
    assert levels(chinese) == levels(english)
    assert _tables(chinese) == _tables(english)


@of_every_page
def test_links_lead_to_the_same_pages(page: str) -> None:
    english, chinese = DOCS / page, DOCS / "zh" / page
    assert chinese in _links(english)
    assert english in _links(chinese)
    in_english = {DOCS / link.name if link.parent == DOCS / "zh" else link for link in _links(chinese)}
    assert in_english | {chinese} == _links(english) | {english}
