# SPDX-License-Identifier: Apache-2.0
"""Counts the kernels' costs anew, and writes recorded_counts.json: python tests/programs/record_counts.py

Instructions are recorded for this machine's compiler; the records for other compilers stay.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import checkout_path  # noqa: F401  before what the tests share

# isort: split
import instruction_counts
import npu_counts
from backward_cases import backward_in
from recorded_counts import FILE, Counts, differences, record, recorded

COUNTED: dict[str, Callable[[Path], Counts]] = {
    instruction_counts.where(): instruction_counts.count,
    npu_counts.FORWARD: lambda _: npu_counts.count_forward(),
    npu_counts.BACKWARD: lambda folder: npu_counts.count_backward(backward_in(folder)),
}


def main() -> None:
    for where, count in COUNTED.items():
        with tempfile.TemporaryDirectory() as folder:
            counts = count(Path(folder))
        changed = list(differences(counts, recorded(where) or {}, more=0.001, less=0.001))
        record(where, counts)
        sys.stdout.write("\n".join([f"{where}: {len(changed)} of {len(counts)} differ", *changed, ""]))
    sys.stdout.write(f"recorded in {FILE}\n")


if __name__ == "__main__":
    main()
