# SPDX-License-Identifier: Apache-2.0
"""Runs programs in processes where launch_hook.cpp intercepts the kernels' launches."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from virtual_cann import observe
from virtual_process import run_from_the_start

# The beginning of each program. Each buffer is an allocation of its own, so bytes that no kernel writes are NaN.
_PROLOGUE = """
import ctypes, json, torch, torch_npu, npu_ce_jit
hook = ctypes.CDLL(None)
"""


def run_hooked(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in which `hook` has the functions of launch_hook.cpp; asserts that it exits with 0."""
    variables = {"LD_PRELOAD": str(_library()), "PYTORCH_NO_NPU_MEMORY_CACHING": "1"} | environment
    done = run_from_the_start(_PROLOGUE + code, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@cache
def _library() -> Path:
    library = Path(tempfile.mkdtemp()) / "launch_hook.so"
    include, lib64 = Path(observe.__file__).parent, Path(os.environ["ASCEND_HOME_PATH"], "lib64")
    source = Path(__file__).with_name("launch_hook.cpp")
    command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{include}", source, f"-L{lib64}", "-lascendcl"]
    subprocess.run([*command, f"-Wl,-rpath,{lib64}", "-o", library], check=True)
    return library
