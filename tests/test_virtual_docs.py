# SPDX-License-Identifier: Apache-2.0
"""docs/virtual-npu.md states the rules and the rates that the machine has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MACHINE = HERE / "virtual_cann" / "machine"
PAGE = HERE.parent / "docs" / "virtual-npu.md"

RULES = re.findall(r"^  (\w+), +// (.+)$", (MACHINE / "rules.h").read_text("utf-8"), re.MULTILINE)
RATES = re.findall(
    r'(?:Rate (k\w+) = |^    )\{([\d.e]+), "([^"]+)", (true|false),\s*"([^"]+)"\}',
    (MACHINE / "rates.h").read_text("utf-8"),
    re.MULTILINE,
)


def rule_row(name: str, demand: str) -> str:
    return f"| `{name}` | {demand} |"


def rate_row(name: str, value: str, unit: str, documented: str, source: str) -> str:
    mark = "" if documented == "true" else " *"
    return f"| {name or source.split(':')[0].split(';')[0]}{mark} | {value} {unit} | {source} |"


@pytest.fixture(scope="module")
def page() -> set[str]:
    return set(PAGE.read_text("utf-8").splitlines())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule[0])
def test_every_rule_is_on_the_page(rule: tuple[str, str], page: set[str]) -> None:
    assert rule_row(*rule) in page


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: rate[0] or rate[4].split()[0])
def test_every_rate_is_on_the_page(rate: tuple[str, ...], page: set[str]) -> None:
    assert rate_row(*rate) in page


def test_the_page_has_no_rule_and_no_rate_of_its_own(page: set[str]) -> None:
    names = r"`[a-z_]+`|k[A-Z]\w+(?: \*)?|[a-z]+(?: \*)?"
    heads = {"| rule | what it demands |", "| rate | value | from |", "| variable | what it does | default |"}
    rows = {line for line in page if re.match(rf"\| (?:{names}) \|", line)} - heads
    assert rows == {rule_row(*rule) for rule in RULES} | {rate_row(*rate) for rate in RATES}


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tests").symlink_to(HERE)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    exec(example, {})
    assert "microseconds" in capsys.readouterr().out
