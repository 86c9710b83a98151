# SPDX-License-Identifier: Apache-2.0
"""The two READMEs have the same commands, pictures and links, whose targets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from locations import CHECKOUT

ENGLISH, CHINESE = CHECKOUT / "README.md", CHECKOUT / "README.zh-CN.md"

pytestmark = pytest.mark.skipif(not ENGLISH.is_file(), reason="the package under test is installed, not a checkout")


def _commands(page: Path) -> list[str]:
    text = page.read_text("utf-8")
    fenced = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    typed = re.findall(r"^    \$ (.*?) +#", text, re.MULTILINE)
    return [*(block.strip() for block in fenced), *typed]


def _links(page: Path) -> set[str]:
    return set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))) - {ENGLISH.name, CHINESE.name}


def test_both_give_the_same_commands() -> None:
    assert len(_commands(CHINESE)) > 8
    assert set(_commands(CHINESE)) <= set(_commands(ENGLISH))


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert len(_links(page)) > 8
    assert [link for link in _links(page) if not (CHECKOUT / link).exists()] == []


def test_the_translation_leads_to_the_same_how_to_pages() -> None:
    pages = {link for link in _links(ENGLISH) if link.startswith("docs/") and "virtual" not in link}
    translated = {link.replace("docs/zh/", "docs/") for link in _links(CHINESE)}
    assert pages - translated <= {"docs/security.md", "docs/troubleshooting.md", "docs/design.md"}
