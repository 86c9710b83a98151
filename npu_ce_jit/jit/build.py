# SPDX-License-Identifier: Apache-2.0
"""Compiles the library in a private directory and publishes it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit import flags
from npu_ce_jit.jit.build_log import compiler_failure
from npu_ce_jit.jit.cache_key import CacheKey
from npu_ce_jit.jit.jobs import job_count
from npu_ce_jit.jit.lock import build_lock
from npu_ce_jit.jit.ninja_file import ninja_file
from npu_ce_jit.jit.progress import BuildProgress
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.store import Artifact, Store
from npu_ce_jit.jit.toolchain import Toolchain
from npu_ce_jit.jit.trust import write_private
from npu_ce_jit.settings import Settings

_POLL_SECONDS = 0.1
_VERSION_SECONDS = 30.0
_STOP_SECONDS = 5.0
_FAILED_LOG = "failed-build.log"


def build(settings: Settings, toolchain: Toolchain, sources: Sources, key: CacheKey, store: Store) -> Artifact:
    """Look, lock, look again, build, publish. Another process's result serves as well as our own.

    Raises:
        ToolchainError: something that a build needs is not here.
        BuildError: no directory to build in, or the compiler refused; its log is kept beside the entries.
    """
    toolchain.require_build(("cpu_isa", "cxx", "ninja"))
    name = f"{store.roots[0].path.resolve()}/{key.name}"
    with build_lock(name, settings, lambda: store.find(key)) as found:
        if found is not None:
            return found
        with store.staging_dir(key) as staging_dir:
            try:
                return _build_in(staging_dir, settings, toolchain, sources, key, store)
            except OSError as error:
                raise BuildError(f"The build in {staging_dir} failed: {error}.", "Free or repair that disk.") from error


def _build_in(
    staging_dir: Path, settings: Settings, toolchain: Toolchain, sources: Sources, key: CacheKey, store: Store
) -> Artifact:
    started = time.time()
    include_dirs, library_dirs = _torch_dirs(toolchain)
    cpu_isa = toolchain.cpu_isa.require()
    text = ninja_file(toolchain.cxx_command, cpu_isa, sources, include_dirs, library_dirs)
    write_private(staging_dir / "build.ninja", text)
    environment = settings.child_environment(LC_ALL="C", NINJA_STATUS="[%f/%t] ", TMPDIR=str(staging_dir))
    progress = BuildProgress(
        f"the CPU kernels ({cpu_isa}, torch {toolchain.torch_version.value}) with {toolchain.cxx.value}",
        str(staging_dir.parent),
    )
    log_file = staging_dir / "build.log"
    jobs = job_count(settings.max_jobs, len(sources.cpu_units))
    try:
        built = _run_ninja([toolchain.ninja.require(), f"-j{jobs}"], staging_dir, environment, log_file, progress)
    except BaseException:
        progress.end(built=False)
        raise
    progress.end(built=built)
    if not built:
        raise _failure(log_file)
    if Sources.of(sources.root_dir) != sources:
        raise BuildError(f"A source below {sources.root_dir} changed while it was compiled.", "Import again.")
    facts = {
        "key": key.text,
        "compiler": {"command": toolchain.cxx.value, "version": _version(toolchain.cxx_command, environment)},
        "ninja": {"command": toolchain.ninja.value, "version": _version([toolchain.ninja.require()], environment)},
        "flags": [*flags.COMPILE, *flags.OF_ISA[cpu_isa], *flags.LINK, *flags.LIBRARIES],
        "toolchain": {name: fact._asdict() for name, fact in toolchain._asdict().items()},
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        "jobs": jobs,
    }
    names = (flags.LIBRARY_FILE, "build.ninja", "build.log")
    return store.publish(staging_dir, {name: staging_dir / name for name in names}, flags.LIBRARY_FILE, facts)


def _torch_dirs(toolchain: Toolchain) -> tuple[list[str], list[str]]:
    try:
        # The owner of this knowledge. It imports setuptools, so it is asked on the cold path only.
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError:  # no setuptools, which torch does not require everywhere
        torch_dir = toolchain.torch_dir.require()
        return [f"{torch_dir}/include", f"{torch_dir}/include/torch/csrc/api/include"], [f"{torch_dir}/lib"]
    return list(include_paths()), list(library_paths())


def _run_ninja(
    command: list[str], staging_dir: Path, environment: dict[str, str], log_file: Path, progress: BuildProgress
) -> bool:
    """Whether it succeeded. Its output goes straight to a file, which outlives us if we are killed."""
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as log:
        process = subprocess.Popen(  # noqa: S603  no shell; ninja is where discover() found it
            command,
            cwd=staging_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            umask=0o077,  # a library that the group can write would be refused later
            start_new_session=True,  # an interrupt from the keyboard is ours to handle, see _stop
        )
    try:
        while True:
            try:
                return process.wait(_POLL_SECONDS) == 0
            except subprocess.TimeoutExpired:
                progress.show(log_file.read_text("utf-8", errors="replace"))
    finally:
        if process.poll() is None:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Each compiler leads a process group of its own; only ninja knows them, and passes the signal on.
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failure(log_file: Path) -> BuildError:
    command, first_lines = compiler_failure(log_file.read_text("utf-8", errors="replace"))
    kept_file = log_file.parent.parent / _FAILED_LOG
    log_file.replace(kept_file)
    return BuildError(
        "The CPU kernels did not compile.",
        "Mend the first error and import again; `python -m npu_ce_jit doctor` shows what was found on this machine.",
        command,
        first_lines,
        str(kept_file),
    )


def _version(command: list[str], environment: dict[str, str]) -> str:
    """The first line of `--version`, or why there is none: worth a note in the manifest, never a failure."""
    try:
        done: subprocess.CompletedProcess[Any] = subprocess.run(  # noqa: S603
            [*command, "--version"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"
    return str(done.stdout.decode("utf-8", "replace").partition("\n")[0])
