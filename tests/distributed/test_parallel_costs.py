# SPDX-License-Identifier: Apache-2.0
"""docs/distributed.md: its formulas against counts on 2 and 4 ranks, its tables, and its example."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from collectives import Watched
from locations import CHECKOUT
from ranks import run_on_ranks

import npu_ce_jit
from npu_ce_jit.bench.timing import peak_allocated

if not (CHECKOUT / "benchmarks").is_dir():
    pytest.skip("the package under test is installed, not a checkout", allow_module_level=True)
costs = importlib.import_module("parallel_costs")


def counted(rank: int, ranks: int) -> dict[str, Any]:
    """Collectives and peak bytes of each implementation, by its name and the bytes of a logit."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import loss_parallel

    from npu_ce_jit.parallel import vocab_parallel_cross_entropy

    mesh = init_device_mesh("cpu", (ranks,))
    rows, classes = 64, 2048 * ranks
    target = torch.randint(classes, (rows,))
    shared_target = distribute_tensor(target, mesh, [Replicate()])
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(rows, classes // ranks).to(dtype)

        def ours(logits=logits) -> Any:
            leaf = logits.detach().requires_grad_()
            return torch.autograd.grad(vocab_parallel_cross_entropy(leaf, target), leaf)

        def in_context(logits=logits) -> Any:
            leaf = DTensor.from_local(logits, mesh, [Shard(1)]).requires_grad_()
            with loss_parallel():
                return torch.autograd.grad(F.cross_entropy(leaf, shared_target), leaf)

        def gathered(logits=logits) -> Any:
            leaf = DTensor.from_local(logits, mesh, [Shard(1)]).requires_grad_()
            return torch.autograd.grad(F.cross_entropy(leaf.redistribute(mesh, [Replicate()]), shared_target), leaf)

        for name, step in (("ours", ours), ("loss_parallel", in_context), ("gathered", gathered)):
            with Watched() as watched:
                step()
            # The minimum of several: gloo's threads may hold a buffer for a moment longer.
            found[name, dtype.itemsize] = watched.collectives, min(peak_allocated(step) for _ in range(4))
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_formulas_are_what_is_counted(ranks):
    for of_rank in run_on_ranks(ranks, counted, ranks):
        assert len(of_rank) == 6
        for (name, logit_bytes), (collectives, peak) in of_rank.items():
            problem = costs.Sizes(64, 2048 * ranks, ranks, logit_bytes)
            assert collectives == getattr(costs, name)(problem), (name, logit_bytes)
            # The formula leaves out a few numbers for each row; logits would be at least 4096 bytes a row.
            beside = peak - getattr(costs, f"{name}_memory")(problem)
            assert 0 <= beside <= 128 * problem.rows, (name, logit_bytes, beside / problem.rows)


def test_a_ring_sends_what_is_known_of_it():
    assert costs.Collective("all_reduce", 100).wire(4) == 150
    assert costs.Collective("all_gather_into_tensor", 100).wire(4) == 300
    assert costs.Collective("all_reduce", 100).wire(1) == 0


def test_the_page_has_the_tables_that_the_formulas_make():
    page = costs.PAGE.read_text("utf-8")
    assert page == costs.filled(page, costs.blocks(), costs.PAGE.name), "run python benchmarks/parallel_costs.py"


@pytest.mark.feature("torchrun with two ranks")
def test_the_example_of_the_page_runs(tmp_path):
    program = re.search(r"```python\n(.*?)```", costs.PAGE.read_text("utf-8"), re.DOTALL)
    assert program is not None
    script = tmp_path / "two_ranks.py"
    script.write_text(program[1], "utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(npu_ce_jit.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Both ranks write to one pipe, so their text may share a line.
    assert sorted(re.findall(r"rank \d: loss", done.stdout)) == ["rank 0: loss", "rank 1: loss"]
    assert done.stdout.count("gradient of its head [500, 16]") == 2
