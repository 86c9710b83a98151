# SPDX-License-Identifier: Apache-2.0
"""Children and other processes around one that builds or has loaded: forked, spawned, or cleaning the cache."""

from __future__ import annotations

import ctypes
import os
import threading
import time

import pytest
import torch_processes
from probes import needs_the_library
from toy_package import (
    Toy,
    compiler_script,
    copy_package,
    exit_code,
    fork,
    needs_compiler,
    run_python,
    run_python_from_the_start,
    toy,
    wait_until,
)

from npu_ce_jit import bootstrap
from npu_ce_jit.cli import cache_commands

pytestmark = needs_compiler

SPAWN = """
import multiprocessing, os, sys
import npu_ce_jit
pool = multiprocessing.get_context("spawn").Pool(2)
ours = npu_ce_jit.info()
theirs = pool.apply(npu_ce_jit.info)
assert ours["cpu"]["state"] == "loaded"
assert theirs["cpu"] == ours["cpu"], (theirs, ours)
pool.close()
pool.join()
"""
AGAIN = """
import importlib, os, sys, torch
import npu_ce_jit
from npu_ce_jit import bootstrap
x, target = torch.randn(4, 8), torch.tensor([0, 1, 2, 3])
before, loss = bootstrap.current(), npu_ce_jit.cross_entropy(x, target)
os.environ |= {"NPU_CE_JIT_BUILD": "eager", "NPU_CE_JIT_CACHE_DIR": "/proc/self/nothing", "CXX": "nothing"}
import npu_ce_jit
assert importlib.reload(npu_ce_jit) is npu_ce_jit
assert bootstrap.current() is before, "what the environment says later changes nothing"
assert torch.equal(npu_ce_jit.cross_entropy(x, target), loss)
print(before.backend)
"""

AFTER_A_PARALLEL_REGION = """
import os, sys, time
import torch
import npu_ce_jit

torch.set_num_threads(2)
x, target = torch.randn(2048, 1024), torch.zeros(2048, dtype=torch.int64)

def child_of(loss, threads):
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(threads)
        loss(x, target)
        os._exit(0)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return "ends"
        time.sleep(0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"

for loss in (torch.nn.functional.cross_entropy, npu_ce_jit.cross_entropy):
    loss(x, target)
    print(child_of(loss, 2), child_of(loss, 1))
"""


@pytest.fixture
def slow(tmp_path) -> Toy:
    """It records the start of its compiler, and each link."""
    lines = f'touch {tmp_path}/started; case "$*" in *-shared*) printf . >> {tmp_path}/links;; esac; sleep 0.7'
    return toy(tmp_path, CXX=compiler_script(tmp_path, lines))


def test_a_fork_while_another_thread_loads_leaves_the_child_able_to():
    holds, may_go = threading.Event(), threading.Event()

    def load():
        with bootstrap._session.lock:
            holds.set()
            may_go.wait(60)

    thread = threading.Thread(target=load)
    thread.start()
    holds.wait(60)
    try:
        child = fork(lambda: os._exit(0 if bootstrap._session.lock.acquire(blocking=False) else 9))
        assert exit_code(child) == 0
    finally:
        may_go.set()
        thread.join()


def test_children_forked_during_a_build_end_without_harm_or_wait_for_it(tmp_path, slow):
    """As a data loader's workers: they must not release the inherited lock, nor remove the inherited directory."""
    results = []
    thread = threading.Thread(target=lambda: results.append(slow.build()))
    thread.start()
    wait_until((tmp_path / "started").exists)
    idle = fork(lambda: None)
    user = fork(slow.build)
    assert exit_code(idle) == 0
    thread.join()
    assert exit_code(user) == 0
    assert (tmp_path / "links").read_text("ascii") == "."
    assert [path.name for path in slow.key_dir.iterdir()] == [results[0].entry_dir.name]


def test_a_child_that_was_forked_during_a_build_and_lives_on_holds_up_nobody_after_it(tmp_path, slow):
    thread = threading.Thread(target=slow.build)
    thread.start()
    wait_until((tmp_path / "started").exists)
    may_go = tmp_path / "may-go"
    child = fork(lambda: wait_until(may_go.exists, seconds=600.0))
    thread.join()
    try:
        cache_commands.clean(slow.store, everything=True, rejected=False, older_than_days=None, dry_run=False)
        start = time.monotonic()
        slow.build()
        assert time.monotonic() - start < slow.settings.lock_timeout / 2, "it waited for the child"
    finally:
        may_go.touch()
        assert exit_code(child) == 0


def test_a_child_forked_after_loading_goes_on_with_the_library(tmp_path):
    library = ctypes.CDLL(str(toy(tmp_path).build().library))

    def task():
        assert library.toy() == 42
        assert toy(tmp_path).find() is not None

    assert exit_code(fork(task)) == 0


@needs_the_library
def test_a_child_forked_after_a_parallel_region_fares_as_with_torchs_loss():
    """Both hang where torch's OpenMP is GNU's, whose threads do not exist in the child; with one thread, both end."""
    run = torch_processes.start(AFTER_A_PARALLEL_REGION, os.environ).wait(60.0)
    torchs, ours = run.stdout.splitlines()
    assert ours == torchs
    assert ours.endswith(" ends")


def test_a_process_goes_on_computing_after_another_has_cleaned_everything(tmp_path):
    """Pages of the library that are touched first after its files were removed are still read from the disk."""
    pages = 64
    body = f"""
        struct alignas(4096) Page {{ volatile int number; }};
        static const Page table[] = {{{", ".join(f"{{{page}}}" for page in range(pages))}}};
        extern "C" __attribute__((visibility("default"))) int toy(int page) {{ return table[page].number; }}
    """
    one = toy(tmp_path, body)
    loaded, cleaned = tmp_path / "loaded", tmp_path / "cleaned"
    one.build()

    def compute():
        artifact = one.find()
        assert artifact is not None
        library = ctypes.CDLL(str(artifact.library))
        assert library.toy(0) == 0
        loaded.touch()
        wait_until(cleaned.exists)
        assert [library.toy(page) for page in range(pages)] == list(range(pages))

    child = fork(compute)
    wait_until(loaded.exists)
    cache_commands.clean(one.store, everything=True, rejected=False, older_than_days=None, dry_run=False)
    assert one.find() is None
    cleaned.touch()
    assert exit_code(child) == 0


def test_a_spawned_child_finds_what_its_parent_has_built(tmp_path):
    site_dir = copy_package(tmp_path / "site")
    lines = f'case "$*" in *-shared*) printf . >> {tmp_path}/links;; esac'
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "CXX": compiler_script(tmp_path, lines)}
    run_python_from_the_start(site_dir, SPAWN, **variables)
    assert (tmp_path / "links").read_text("ascii") == "."


def test_a_second_import_and_a_reload_under_another_environment_register_nothing_twice(tmp_path):
    site_dir = copy_package(tmp_path / "site")
    done = run_python(site_dir, AGAIN, NPU_CE_JIT_BUILD="never", NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"))
    assert done.stdout == "reference\n"
    assert "Warning" not in done.stderr
