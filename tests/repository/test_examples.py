# SPDX-License-Identifier: Apache-2.0
"""The examples run as their headers say, and show what they claim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from locations import CHECKOUT
from probes import needs_matplotlib, needs_notebooks

EXAMPLES = CHECKOUT / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the package under test is installed, not a checkout")
TRAIN = str(EXAMPLES / "train_tiny_lm.py")


def _curve(*command: str) -> list[float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    run = subprocess.run([sys.executable, *command, "--json"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-5000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.feature("training, tensor parallel")
def test_the_curves_lie_on_one_another() -> None:
    torchs = _curve(TRAIN, "--loss", "torch")
    assert len(torchs) == 60
    assert torchs[-1] < torchs[0] - 0.5
    ours = _curve(TRAIN)
    on_two_ranks = _curve("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TRAIN)
    assert ours == pytest.approx(torchs, rel=1e-3)
    assert on_two_ranks == pytest.approx(torchs, rel=1e-3)


@needs_matplotlib
@needs_notebooks
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "is kept without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [output.output_type for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert "error" not in kinds
    assert len(pictures) == 3
