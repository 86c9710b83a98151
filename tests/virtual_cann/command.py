# SPDX-License-Identifier: Apache-2.0
"""Runs a command on a machine that has CANN, torch_npu and an NPU, as far as the command can tell.

usage: virtual-cann COMMAND [ARGUMENT ...]     for example: virtual-cann python train.py

`run`, beside this file, is the same command without an installation. COMMAND sees the packages of the python3 that
runs this, that is, of the active environment; nothing is installed into it. What has to be built is built on first
use and kept. Variables, all optional:

  VIRTUAL_CANN_LAYOUT     8.3, 8.5 or 9.1: which CANN to look like (9.1)
  VIRTUAL_CANN_TORCH_NPU  which torch_npu (the newest that was tried with the torch that is there)
  VIRTUAL_CANN_REFUSES    options that its compiler refuses, as some releases do
  VIRTUAL_CANN_CACHE_DIR  where built things are kept ($XDG_CACHE_HOME/virtual_cann)
  VIRTUAL_CANN_SOC        the chip, as aclrtGetSocName names it (Ascend910B2)
  VIRTUAL_CANN_DEVICES    how many devices there are (1)
  VIRTUAL_CANN_MEMORY     how many bytes of memory each has
  VIRTUAL_CANN_FAULTS     which calls fail (runtime/faults.h)
  VIRTUAL_CANN_AUTO_SYNC  1: judge kernels as if the compiler had inserted synchronisation (0)
  VIRTUAL_CANN_REPORT     the file to which each launch's report is appended
"""

import os
import shutil
import sys

from virtual_cann.cache import PreparationError
from virtual_cann.environment import callers_interpreter
from virtual_cann.prepare import prepare


def main() -> None:
    """Replaces this process by the command of sys.argv."""
    command = sys.argv[1:]
    if not command:
        sys.exit(str(__doc__).strip())
    try:
        prepared = prepare()
    except PreparationError as error:
        sys.exit(f"virtual_cann: {error}")
    variables = prepared.variables(os.environ)
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        sys.exit(f"virtual_cann: {command[0]}: command not found")
    # Scripts such as pytest lie beside the caller's interpreter and name it in their first line.
    if _names_interpreter(program, callers_interpreter()):
        command = [str(prepared.python), program, *command[1:]]
        program = command[0]
    os.execve(program, command, variables)


def _names_interpreter(program: str, interpreter: str) -> bool:
    with open(program, "rb") as file:
        line = file.readline(4096)
    if not line.startswith(b"#!"):
        return False
    directory, name = os.path.split(os.fsdecode(line[2:].split(maxsplit=1)[0]))
    return name.startswith("python") and directory == os.path.dirname(interpreter)
