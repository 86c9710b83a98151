# SPDX-License-Identifier: Apache-2.0
"""The figures of a run: how they are kept in a file, and looked up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from npu_ce_jit.bench.cases import Cell, Row

ROOT = Path(__file__).resolve().parents[1]


class Results(NamedTuple):
    about: dict[str, Any]  # the machine, the versions, the date, and how long it took
    rows: list[Row]
    accuracy: dict[str, float]  # relative error of the worst element of a bf16 gradient, by kind of rows

    @classmethod
    def load(cls, file: Path) -> Results:
        return cls(**json.loads(file.read_text("utf-8")))

    def save(self, file: Path) -> None:
        """A row a line, so that a diff of two runs can be read."""
        lines = ",\n".join(json.dumps(_rounded(row)) for row in self.rows)
        about, accuracy = json.dumps(self.about, indent=2), json.dumps(self.accuracy)
        file.write_text(f'{{"about": {about},\n"accuracy": {accuracy},\n"rows": [\n{lines}\n]}}\n', "utf-8")

    def row(self, cell: Cell, implementation: str) -> Row | None:
        """None where the cell was not measured, or the implementation did not run."""
        case = {**cell._asdict(), "implementation": implementation}
        found = (row for row in self.rows if case.items() <= row.items() and "not run" not in row)
        return next(found, None)

    def number(self, cell: Cell, implementation: str, name: str) -> float | None:
        row = self.row(cell, implementation)
        return None if row is None else row.get(name)

    def times_as_fast(self, cell: Cell, ours: str, peer: str) -> float | None:
        row = self.row(cell, ours)
        return None if row is None else row["times as fast as"].get(peer)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
