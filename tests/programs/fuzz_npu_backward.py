# SPDX-License-Identifier: Apache-2.0
"""Solves random problems with the backward kernels: python tests/programs/fuzz_npu_backward.py [cases]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import checkout_path  # noqa: F401  before what the tests share

# isort: split
from backward_cases import backward_in, fuzz


def main() -> None:
    cases = int([*sys.argv[1:], "10000"][0])
    with tempfile.TemporaryDirectory() as folder:
        fuzz(backward_in(Path(folder)), range(cases))
    sys.stdout.write(f"{cases} cases, none wrong\n")


if __name__ == "__main__":
    main()
