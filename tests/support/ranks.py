# SPDX-License-Identifier: Apache-2.0
"""Runs a function on every rank of a gloo group, in new processes."""

from __future__ import annotations

import datetime as dt
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch_processes import CONTEXT

_SECONDS = 600.0


def run_on_ranks(ranks: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The results of `task(rank, *arguments)` on each rank. Raises AssertionError with the ranks' tracebacks."""
    found = outcomes_on_ranks(ranks, task, *arguments)
    problems = [problem for problem, _ in found if problem]
    assert not problems, "\n".join(problems)
    return [result for _, result in found]


def outcomes_on_ranks(ranks: int, task: Callable[..., Any], *arguments: Any) -> list[tuple[str | None, Any]]:
    """For each rank, its error or None, and the result of `task(rank, *arguments)`.

    The processes are forked from one that has imported torch and has started no thread.
    """
    with tempfile.TemporaryDirectory() as directory:
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(ranks)]
        processes = [
            CONTEXT.Process(target=_rank, args=(writer, rank, ranks, directory, task, arguments))
            for rank, (_, writer) in enumerate(pipes)
        ]
        for process, (_, writer) in zip(processes, pipes, strict=True):
            process.start()
            writer.close()
        found: list[tuple[str | None, Any]] = []
        for rank, (reader, _) in enumerate(pipes):
            try:
                found.append(reader.recv() if reader.poll(_SECONDS) else (f"rank {rank} said nothing", None))
            except EOFError:
                found.append((f"rank {rank} died", None))
        for process in processes:
            process.join(60.0)
            process.kill()
    return found


def _rank(
    writer: Any, rank: int, ranks: int, directory: str, task: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path(directory, 'store')}",
        rank=rank,
        world_size=ranks,
        timeout=dt.timedelta(seconds=300),
    )
    try:
        torch.manual_seed(0)
        writer.send((None, task(rank, *arguments)))
        dist.barrier()
    except Exception:  # noqa: BLE001  reported by the parent
        writer.send((f"rank {rank}: {traceback.format_exc()}", None))
    finally:
        dist.destroy_process_group()
