# SPDX-License-Identifier: Apache-2.0
"""Compiles a target's libraries in a private directory and publishes them."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.build import hints
from npu_ce_jit.jit.build.cache_miss import reason
from npu_ce_jit.jit.build.children import exit_codes_kept
from npu_ce_jit.jit.build.cpu_recipe import Recipe, cpu_recipe
from npu_ce_jit.jit.build.failure import record_failure, recorded_failure
from npu_ce_jit.jit.build.jobs import job_count
from npu_ce_jit.jit.build.lock import build_lock
from npu_ce_jit.jit.build.ninja_file import ninja_file
from npu_ce_jit.jit.build.progress import BuildProgress
from npu_ce_jit.jit.cache.entry import Artifact, publish
from npu_ce_jit.jit.cache.key import CacheKey, cache_key
from npu_ce_jit.jit.cache.permissions import UntrustedError, write_private
from npu_ce_jit.jit.cache.roots import Root
from npu_ce_jit.jit.cache.staging import dead_staging_dirs, staging_dir
from npu_ce_jit.jit.cache.store import Store, make_key_dir
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.targets import Target
from npu_ce_jit.jit.toolchain.compiler_output import BUILD_LOG, Failure, compiler_failure, is_full_disk, open_log
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings

_logger = logging.getLogger("npu_ce_jit")

_POLL_SECONDS = 0.1
_VERSION_SECONDS = 30.0
_STOP_SECONDS = 5.0
_FAILED_LOG = "failed-build.log"
_NINJA_FILE = "build.ninja"
_LEAST_BYTES = 1 << 16  # less than any build writes


def build(target: Target, settings: Settings, toolchain: Toolchain, key: CacheKey, store: Store) -> Artifact:
    """Takes the lock, looks in the cache once more, builds and publishes. Another process's result serves as well.

    Raises:
        ToolchainError: something that a build needs is not here.
        BuildError: no directory to build in, or the compiler refused; its log is kept beside the entries.
    """
    target.sources.require()
    toolchain.require_build(target.needs)
    name = f"{store.roots[0].layout_dir}/{key.name}"
    with build_lock(name, settings, lambda: store.find(key)) as found:
        if found is not None:
            return found
        failure = recorded_failure(name, settings, toolchain)
        if failure is not None:
            raise failure
        try:
            with exit_codes_kept():
                return _Build(target, settings, toolchain, key, store).in_some_root()
        except BuildError as error:
            record_failure(error, name, settings, toolchain)
            raise


class _Build(NamedTuple):
    """One build. An OSError in it is taken for a fault of the directory, and another directory is tried."""

    target: Target
    settings: Settings
    toolchain: Toolchain
    key: CacheKey
    store: Store

    def in_some_root(self) -> Artifact:
        """Builds in the first root that can be built in. A BuildError ends the search: compilers fail in all alike."""
        refusals: list[str] = []
        for root in self.store.build_roots:
            try:
                key_dir = make_key_dir(root, self.key)
                _remove_leftovers(root)
                with staging_dir(key_dir) as directory:
                    if refusals:
                        _logger.info("building in %s, because of %s", root.path, "; ".join(refusals))
                    return self._in(directory)
            except (UntrustedError, OSError) as error:
                refusals.append(f"{root.origin}: {error}")
        raise BuildError(
            f"No directory to build in ({'; '.join(refusals)}).",
            "Free or mend one of them, or set NPU_CE_JIT_CACHE_DIR to a directory that you alone can write.",
        )

    def _in(self, directory: Path) -> Artifact:
        compiler = self.target.compiler(self.toolchain).value
        what = f"the {self.target.title} ({self.target.detail}; {compiler})"
        with BuildProgress(what, str(directory.parent), reason(self.key, self.store)) as progress:
            try:
                return self._compile(directory, progress)
            except BuildError as error:
                if error.log_path:
                    write_private(directory / "room", bytes(_LEAST_BYTES))  # raises OSError on a full disk
                    error = _with_kept_log(error, directory)
                raise error from error.__cause__

    def _compile(self, directory: Path, progress: BuildProgress) -> Artifact:
        target, toolchain = self.target, self.toolchain
        started, start = time.time(), time.monotonic()
        ninja = toolchain.ninja.require()
        sources = target.sources.on_disk(directory)
        recipes = self._recipes(directory, sources)
        recipe = next(recipes)
        while True:
            jobs = job_count(self.settings.max_jobs, recipe.compiles)
            environment = self.settings.child_environment(
                LC_ALL="C", NINJA_STATUS="[%f/%t] ", TMPDIR=str(directory), **recipe.environment
            )
            ninja_text = ninja_file(recipe, sources.root_dir)
            failure = _failure_of([ninja, f"-j{jobs}"], ninja_text, directory, environment, progress)
            failure = failure or _nothing_made(recipe, directory)
            if failure is None:
                break
            try:
                recipe = recipes.send(failure)
            except StopIteration:
                raise self._error(failure, directory / BUILD_LOG) from None
            progress.say(f"trying another way, since one failed: {next(iter(failure.lines), failure.command)}")
        if cache_key(target).text != self.key.text:
            raise BuildError(f"A source below {target.sources.root_dir} changed while it was compiled.", "Build again.")
        tools = {"ninja": [ninja], **recipe.tools}
        facts = {
            "key": self.key.text,
            **{
                name: {"command": shlex.join(words), "version": _version(words, environment)}
                for name, words in tools.items()
            },
            **recipe.facts,
            "toolchain": {name: fact._asdict() for name, fact in toolchain.facts().items()},
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(time.monotonic() - start, 3),
            "jobs": jobs,
        }
        return publish(directory, recipe.libraries, (_NINJA_FILE, BUILD_LOG), facts)

    def _error(self, failure: Failure, log_file: Path) -> BuildError:
        return BuildError(
            f"The {self.target.title} did not compile.",
            hints.of("\n".join(failure.lines), self.toolchain.cxx_command[0]),
            failure.command,
            failure.lines,
            str(log_file),
        )

    def _recipes(self, directory: Path, sources: Sources) -> Generator[Recipe, Failure, None]:
        """Yields recipes to try in turn; is sent the failure of each, and ends where no other would do better."""
        if self.target.name == "cpu":
            yield cpu_recipe(self.toolchain, sources)
            return
        from npu_ce_jit.jit.build.npu_recipe import npu_recipes  # most machines have no NPU

        rejected = self.store.rejected(self.key)
        yield from npu_recipes(self.settings, self.toolchain, sources, directory, self.key.digest, rejected)


def _remove_leftovers(root: Root) -> None:
    for directory in dead_staging_dirs(root.layout_dir):
        _logger.info("removing what a builder left that was killed: %s", directory)
        shutil.rmtree(directory, ignore_errors=True)


def _failure_of(
    command: list[str], ninja_text: str, directory: Path, environment: dict[str, str], progress: BuildProgress
) -> Failure | None:
    """Runs ninja on this file, and returns the failure. What an earlier file made by the same command is kept.

    Raises OSError where a tool failed because the disk was full, or said nothing: such a disk has no room for the log.
    """
    (directory / _NINJA_FILE).unlink(missing_ok=True)
    write_private(directory / _NINJA_FILE, ninja_text)
    succeeded, said = _run_ninja(command, directory, environment, progress)
    failure = compiler_failure(said)
    if succeeded and not failure.outputs:  # a SIGCHLD handler of the program may have taken ninja's exit code
        return None
    if is_full_disk(said):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
    if not said:
        raise OSError(errno.EIO, "the compilers said nothing, as on a disk that was full", str(directory))
    return failure


def _nothing_made(recipe: Recipe, directory: Path) -> Failure | None:
    """The failure where an output is missing after ninja succeeded: ninja trusts exit codes, and does not look."""
    missing = next((step.output for step in recipe.steps if not (directory / step.output).exists()), None)
    if missing is None:
        return None
    return Failure((missing,), "", (f"error: the compiler ended with code 0 and made no {missing}",))


def _run_ninja(
    command: list[str], directory: Path, environment: dict[str, str], progress: BuildProgress
) -> tuple[bool, str]:
    """Whether ninja succeeded, and its output, which goes straight to a file: it remains if we are killed."""
    with open_log(directory) as log:
        begin = log.tell()
        process = subprocess.Popen(  # noqa: S603  no shell; ninja is where Toolchain found it
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            umask=0o077,  # a library that the group can write would be refused later
            start_new_session=True,  # an interrupt from the keyboard is ours to handle, see _stop
        )

    def said() -> str:
        return (directory / BUILD_LOG).read_bytes()[begin:].decode("utf-8", "replace")

    try:
        while True:
            try:
                return process.wait(_POLL_SECONDS) == 0, said()
            except subprocess.TimeoutExpired:
                progress.show(said())
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


def _with_kept_log(error: BuildError, directory: Path) -> BuildError:
    """The same error, its log moved out of the directory, which is removed."""
    kept_file = directory.parent / _FAILED_LOG
    Path(error.log_path).replace(kept_file)
    return BuildError(error.fact, error.hint, error.command, error.first_lines, str(kept_file))


def _version(command: Sequence[str], environment: dict[str, str]) -> str:
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
