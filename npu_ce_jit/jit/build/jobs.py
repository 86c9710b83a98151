# SPDX-License-Identifier: Apache-2.0
"""How many compilers may run at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_COMPILER_BYTES = 1 << 30  # what one may take; g++ 12 took 213 MB at most (f16_bf16.cpp), bisheng may take more
_SPARE_BYTES = 1 << 30
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def job_count(max_jobs: int | None, units: int) -> int:
    """At least 1; at most MAX_JOBS, the CPUs this process may use, what free memory allows, and `units`."""
    limits = [units, *_cpus(), *((free - _SPARE_BYTES) // _COMPILER_BYTES for free in _free_bytes())]
    if max_jobs is not None:
        limits.append(max_jobs)
    return max(1, min(limits))


def _cpus() -> Iterator[int]:
    yield len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _cgroups():
        # Version 2 has both numbers in one file, version 1 one in each of two.
        words = _text(group / "cpu.max") or f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"
        if quota := re.fullmatch(r"(\d+) (\d+)", words):
            yield int(quota[1]) // int(quota[2])


def _free_bytes() -> Iterator[int]:
    """Free memory of the machine, and of each cgroup of this process; reclaimable page cache counts as free."""
    if available := re.search(r"^MemAvailable:\s*(\d+) kB", _text(_PROC / "meminfo"), re.MULTILINE):
        yield int(available[1]) * 1024
    for group in _cgroups():
        for limit_file, used_file, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _text(group / limit_file), _text(group / used_file)
            if limit.isdecimal() and used.isdecimal():
                reclaimable = re.search(rf"^{cached} (\d+)", _text(group / "memory.stat"), re.MULTILINE)
                yield int(limit) - int(used) + (int(reclaimable[1]) if reclaimable else 0)


def _cgroups() -> Iterator[Path]:
    """The directories of this process's cgroups, and the mount points, where a container finds its own cgroup."""
    for line in _text(_PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mount = _CGROUPS / controllers  # empty in version 2
        yield from {mount / path.lstrip("/"), mount}


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
