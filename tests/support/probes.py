# SPDX-License-Identifier: Apache-2.0
"""Probes for what this machine supports. Every skip comes from one of them, and gives its reason."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from npu_ce_jit import bootstrap

_session = bootstrap.current()
assert _session is not None

needs_the_library = pytest.mark.skipif(
    _session.backend != "cpp", reason=f"runs on the compiled kernels, and there are none: {_session.cpu.problem}"
)
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="draws pictures, and the extra [plot] is not installed"
)

needs_notebooks = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")),
    reason="runs a notebook, and the extra [dev] is not installed",
)


def needs_frameworks(*names: str) -> pytest.MarkDecorator:
    """Needs frameworks of the extra [clients], which are large; only the tests of npu_ce_jit.patch use them."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"patches {', '.join(missing)}, and the extra [clients] is not installed"
    )


def needs_import(module: str) -> pytest.MarkDecorator:
    """Needs a framework that may refuse the installed versions of other packages, when it is imported."""
    reason = ""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  in whichever way it fails
        reason = f"patches {module}, whose import says {type(error).__name__}: {error}"
    return pytest.mark.skipif(bool(reason), reason=reason)


def available_bytes() -> int:
    """The available memory."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fresh_environment(cache_dir: Path) -> dict[str, str]:
    """This process's environment with a new cache directory, so that no earlier build is found."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NPU_CE_JIT_")}
    return {**inherited, "NPU_CE_JIT_CACHE_DIR": str(cache_dir)}


def may_mount() -> bool:
    """Whether a process here can make mounts that end with it."""
    try:
        tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    except OSError:
        return False
    return tried.returncode == 0
