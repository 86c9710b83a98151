# SPDX-License-Identifier: Apache-2.0
"""The rates of machine/rates.h, and the assumptions about them that the estimates use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).parent / "machine" / "rates.h"
_NUMBER = r"([\d.e]+)"
_ROW = re.compile(
    rf'\{{"(\w+)", {_NUMBER}, {_NUMBER}, {_NUMBER}, "([^"]+)", (true|false),\s+"([^"]+)"(?:,\s+"(\w+)")?\}}'
)


class Rate(NamedTuple):
    name: str
    value: float
    fast: float
    slow: float
    unit: str
    documented: bool
    source: str
    range: str  # the rate's own name, or the name of the rate that it moves with


def table() -> list[Rate]:
    return [
        Rate(name, float(value), float(fast), float(slow), unit, documented == "true", source, range_ or name)
        for name, value, fast, slow, unit, documented, source, range_ in _ROW.findall(_FILE.read_text("utf-8"))
    ]


def assumptions() -> dict[str, dict[str, float]]:
    """The rates of each assumption, by the names in a report's estimates: the table, all ends, each range alone."""
    rates = table()
    values = {rate.name: rate.value for rate in rates}
    found = {
        "table": values,
        "fast": {rate.name: rate.fast for rate in rates},
        "slow": {rate.name: rate.slow for rate in rates},
    }
    for range_ in dict.fromkeys(rate.range for rate in rates):
        for end in ("fast", "slow"):
            moved = values | {rate.name: getattr(rate, end) for rate in rates if rate.range == range_}
            if moved != values:
                found[f"{range_} {end}"] = moved
    return found
