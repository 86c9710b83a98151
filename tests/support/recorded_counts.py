# SPDX-License-Identifier: Apache-2.0
"""The recorded costs of the kernels, by name, and their comparison with new counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
Counts = dict[str, float]


def _read() -> dict[str, Counts]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def recorded(where: str) -> Counts | None:
    """The recorded counts. `where` says where they hold, for example "g++ 12, avx2"."""
    return _read().get(where)


def record(where: str, counts: Counts) -> None:
    every = _read() | {where: {name: float(f"{count:.5g}") for name, count in counts.items()}}
    FILE.write_text(json.dumps(every, indent=2, sort_keys=True) + "\n")


def differences(counts: Counts, before: Counts, more: float, less: float) -> Iterator[str]:
    """Describes each count that is more than a fraction `more` above the recorded one, or `less` below."""
    for name in sorted({*counts, *before}):
        if name not in counts:
            yield f"{name}: recorded, but not counted"
        elif name not in before:
            yield f"{name}: counted, but not recorded"
        elif not before[name] * (1 - less) <= counts[name] <= before[name] * (1 + more):
            yield f"{name}: {counts[name]:.5g}, recorded {before[name]:.5g}"


def require_as_recorded(where: str, counts: Counts, more: float, less: float) -> None:
    before = recorded(where)
    assert before is not None, f"nothing is recorded for {where}: run python tests/programs/record_counts.py"
    changed = "\n".join(differences(counts, before, more, less))
    assert not changed, (
        f"The kernels do not cost what {FILE.name} has for {where}. Where that is a gain, or is meant, "
        f"run python tests/programs/record_counts.py and commit the file.\n{changed}"
    )
