# SPDX-License-Identifier: Apache-2.0
"""A warning names the line of the user's program that led to it, however it got there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch_processes

import npu_ce_jit

# The line of `user.py` that the warning must name is marked with "# here".
AT_IMPORT = {
    "import": "import os\nimport npu_ce_jit  # here\n",
    "from": "import os\n\nfrom npu_ce_jit import (  # here\n    CrossEntropyLoss,\n    cross_entropy,\n)\n",
    "submodule": "from npu_ce_jit import parallel  # here\n",
    "deep": "import npu_ce_jit.api.cross_entropy as function  # here\n",
    "importlib": 'from importlib import import_module\npackage = import_module("npu_ce_jit")  # here\n',
    "in a function": "def use():\n    import npu_ce_jit  # here\n\n\nuse()\n",
}
CALL = "import torch\nimport npu_ce_jit\nx, y = torch.zeros(2, 3), torch.tensor([0, 1])\n"
AT_A_CALL = {
    "function": CALL + "loss = npu_ce_jit.cross_entropy(  # here\n    x,\n    y,\n)\n",
    "module": CALL + "loss = npu_ce_jit.CrossEntropyLoss()\nloss(x, y)  # here\n",
    "redirected": CALL + "with npu_ce_jit.installed():\n    torch.nn.functional.cross_entropy(x, y)  # here\n",
}
PATCHED = "import torch\nimport npu_ce_jit\ntorch.nn.functional.cross_entropy = print\n"
AT_THE_SWITCH = {
    "install": PATCHED + "npu_ce_jit.install()  # here\n",
    "installed": PATCHED + "with npu_ce_jit.installed():  # here\n    pass\n",
}


def blamed(directory: Path, program: str, **variables: str) -> list[str]:
    """The places, as `file:line`, that this package's warnings name when a program runs."""
    code = "import torch, warnings\nwarnings.simplefilter('always')\n" + program
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NPU_CE_JIT_")}
    places = os.pathsep.join((str(directory), str(Path(npu_ce_jit.__file__).parents[1])))
    environment = inherited | {"PYTHONPATH": places, "NPU_CE_JIT_CACHE_DIR": str(directory / "cache")} | variables
    run = torch_processes.start(code, environment, directory).wait()
    assert run.returncode == 0, run.stderr
    warned = [line for line in run.stderr.splitlines() if "RuntimeWarning: npu_ce_jit: " in line]
    return [line.partition(": ")[0] for line in warned]


def line_of(directory: Path, text: str) -> str:
    """Writes `user.py`, and returns the place that a warning must name."""
    file = directory / "user.py"
    file.write_text(text, "utf-8")
    return f"{file}:{1 + text[: text.index('# here')].count(chr(10))}"


@pytest.mark.parametrize("text", AT_IMPORT.values(), ids=AT_IMPORT)
def test_at_an_import(tmp_path: Path, text: str) -> None:
    place = line_of(tmp_path, text)
    assert blamed(tmp_path, "import user\n", NPU_CE_JIT_BUILD="never", MAX_JOBS="many") == [place]


@pytest.mark.parametrize("text", AT_A_CALL.values(), ids=AT_A_CALL)
def test_at_the_first_call(tmp_path: Path, text: str) -> None:
    place = line_of(tmp_path, text)
    assert blamed(tmp_path, "import user\n", NPU_CE_JIT_BUILD="lazy", PATH="", CXX="") == [place]


@pytest.mark.parametrize("text", AT_THE_SWITCH.values(), ids=AT_THE_SWITCH)
def test_at_the_switch(tmp_path: Path, text: str) -> None:
    place = line_of(tmp_path, text)
    assert blamed(tmp_path, "import user\n", NPU_CE_JIT_BUILD="never") == [place]


def test_where_the_program_is_no_file(tmp_path: Path) -> None:
    code = "\n\nimport npu_ce_jit\n"
    assert blamed(tmp_path, code, NPU_CE_JIT_BUILD="never", MAX_JOBS="many") == ["<string>:5"]
