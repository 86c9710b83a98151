# SPDX-License-Identifier: Apache-2.0
"""How many compilers may run at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

_COMPILER_BYTES = 1 << 30  # what one compiler may take; measured 176 MB, and a kernel file may take more
_SPARE_BYTES = 1 << 30


def job_count(max_jobs: int | None, units: int) -> int:
    """At least 1; at most MAX_JOBS, the CPUs this process may use, what free memory allows, and `units`."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [cpus, units]
    if max_jobs is not None:
        limits.append(max_jobs)
    free_bytes = _free_bytes()
    if free_bytes is not None:
        limits.append((free_bytes - _SPARE_BYTES) // _COMPILER_BYTES)
    return max(1, min(limits))


def _free_bytes() -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text("ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
