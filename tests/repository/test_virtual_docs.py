# SPDX-License-Identifier: Apache-2.0
"""docs/virtual-npu.md states the machine's rules and rates."""

from __future__ import annotations

import re

import pytest
from locations import CHECKOUT, VIRTUAL_CANN
from virtual_cann import rates

MACHINE = VIRTUAL_CANN / "machine"
PAGE = CHECKOUT / "docs" / "virtual-npu.md"

RULES = re.findall(r"^  (\w+), +// (.+)$", (MACHINE / "rules.h").read_text("utf-8"), re.MULTILINE)
RATES = rates.table()


def rule_row(name: str, demand: str) -> str:
    return f"| `{name}` | {demand} |"


def number(value: float) -> str:
    return f"{value / 1e12:g}e12" if value >= 1e9 else f"{value:g}"


def rate_row(rate: rates.Rate) -> str:
    cells = [rate.name + " *" * (not rate.documented), *map(number, (rate.value, rate.fast, rate.slow))]
    return f"| {' | '.join([*cells, rate.unit, rate.source])} |"


@pytest.fixture(scope="module")
def page() -> set[str]:
    return set(PAGE.read_text("utf-8").splitlines())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule[0])
def test_every_rule_is_on_the_page(rule: tuple[str, str], page: set[str]) -> None:
    assert rule_row(*rule) in page


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: rate.name)
def test_every_rate_is_on_the_page(rate: rates.Rate, page: set[str]) -> None:
    assert rate_row(rate) in page


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: rate.name)
def test_a_guess_has_half_and_double_for_its_range(rate: rates.Rate) -> None:
    assert rate.documented or (rate.fast, rate.slow) == (rate.value / 2, rate.value * 2)


def test_the_page_has_no_rule_and_no_rate_of_its_own(page: set[str]) -> None:
    names = r"`[a-z_]+`|[a-z_0-9]+(?: \*)?"
    heads = {
        "| rule | what it demands |",
        "| rate | value | fast | slow | unit | from |",
        "| variable | what it does | default |",
    }
    rows = {line for line in page if re.match(rf"\| (?:{names}) \|", line)} - heads
    assert rows == {rule_row(*rule) for rule in RULES} | set(map(rate_row, RATES))
