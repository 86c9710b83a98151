# SPDX-License-Identifier: Apache-2.0
"""Runs a command on aarch64, emulated; for example: python tests/programs/aarch64.py pytest tests/op/test_errors.py

The first run makes an environment for aarch64, in a minute (see `tests/support/aarch64_python.py`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import checkout_path  # noqa: F401  before what the tests share

# isort: split
import aarch64_python
from locations import VIRTUAL_CANN
from virtual_cann.cache import PreparationError


def main() -> None:
    """Replaces this process by the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=aarch64_python.TORCH, metavar="VERSION", help="(%(default)s)")
    parser.add_argument("--npu", action="store_true", help="with torch_npu, on the virtual CANN")
    parser.add_argument(
        "--dir", type=Path, default=aarch64_python.default_cache_dir(), help="where it is kept (%(default)s)"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("expected a command, such as: python -m npu_ce_jit demo")
    environment_of = aarch64_python.npu_environment if arguments.npu else aarch64_python.environment
    try:
        environment = environment_of(arguments.dir.absolute(), arguments.torch)
    except PreparationError as error:
        sys.exit(f"aarch64: {error}")
    command, variables = arguments.command, aarch64_python.variables(environment, os.environ)
    if arguments.npu:
        command = ["python", str(VIRTUAL_CANN / "run"), *command]
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        sys.exit(f"aarch64: {command[0]}: command not found")
    os.execve(program, command, variables)


if __name__ == "__main__":
    main()
