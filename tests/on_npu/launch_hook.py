# SPDX-License-Identifier: Apache-2.0
"""Programs in whose processes launch_hook.cpp stands between the kernels' launches and the virtual runtime."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from virtual_cann import observe
from virtual_process import run_from_the_start

# What each program begins with. Each buffer is an allocation of its own: what no kernel writes is NaN.
_PROLOGUE = """
import ctypes, json, torch, torch_npu, npu_ce_jit
hook = ctypes.CDLL(None)
"""


def run_hooked(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that has `hook` with the functions of launch_hook.cpp, and that ends well."""
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
