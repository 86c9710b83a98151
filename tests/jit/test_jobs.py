# SPDX-License-Identifier: Apache-2.0
"""The number of parallel compilers, on machines and in containers of every size."""

from __future__ import annotations

import os

import pytest

from npu_ce_jit.jit.build import jobs
from npu_ce_jit.jit.build.jobs import job_count


def test_jobs_are_limited_by_request_processors_memory_and_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(jobs, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(jobs, "_PROC", tmp_path)
    assert job_count(None, 100) == 16
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {9 << 20} kB\n", "ascii")
    assert job_count(None, 100) == 8
    assert job_count(3, 100) == 3
    assert job_count(None, 5) == 5
    (tmp_path / "meminfo").write_text("MemAvailable:   1024 kB\n", "ascii")
    assert job_count(None, 5) == 1


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("place", ["job/step", ""])  # as a batch system places a process, and as a container sees it
def test_jobs_are_limited_by_the_control_group(tmp_path, monkeypatch, version, place):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(jobs, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(jobs, "_PROC", tmp_path)
    (tmp_path / "self").mkdir()
    lines = "0::/job/step\n" if version == 2 else "9:memory:/job/step\n4:cpu,cpuacct:/job/step\n"
    (tmp_path / "self/cgroup").write_text(lines, "ascii")
    cpu_dir, memory_dir = (
        tmp_path / "groups" / name / place for name in (("", "") if version == 2 else ("cpu,cpuacct", "memory"))
    )
    for directory in (cpu_dir, memory_dir):
        directory.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (cpu_dir / "cpu.max").write_text("max 100000\n", "ascii")
        (memory_dir / "memory.max").write_text("max\n", "ascii")
        (memory_dir / "memory.current").write_text(f"{3 << 30}\n", "ascii")
    else:
        (cpu_dir / "cpu.cfs_quota_us").write_text("-1\n", "ascii")
        (cpu_dir / "cpu.cfs_period_us").write_text("100000\n", "ascii")
        (memory_dir / "memory.usage_in_bytes").write_text(f"{3 << 30}\n", "ascii")
    assert job_count(None, 100) == 16
    quota_file, quota = ("cpu.max", "1250000 100000") if version == 2 else ("cpu.cfs_quota_us", "1250000")
    (cpu_dir / quota_file).write_text(quota, "ascii")
    assert job_count(None, 100) == 12
    limit_file, cached = (
        ("memory.max", "inactive_file") if version == 2 else ("memory.limit_in_bytes", "total_inactive_file")
    )
    (memory_dir / limit_file).write_text(f"{8 << 30}\n", "ascii")
    assert job_count(None, 100) == 4
    (memory_dir / "memory.stat").write_text(f"anon 7\n{cached} {2 << 30}\n", "ascii")
    assert job_count(None, 100) == 6
