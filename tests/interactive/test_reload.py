# SPDX-License-Identifier: Apache-2.0
"""Reloading the package, one module or all, in a process that goes on computing, as in a notebook."""

from __future__ import annotations

import os

import pytest
import torch_processes
from probes import needs_the_library
from toy_package import copy_package, run_python

CHECKS = """
import importlib, pkgutil, sys
import torch, torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
import npu_ce_jit
from npu_ce_jit import cross_entropy as first_cross_entropy

first = npu_ce_jit
compiled_first = torch.compile(first_cross_entropy, backend="aot_eager", fullgraph=True)
target = torch.tensor([0, 3, 8, 1])

def ours():
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "npu_ce_jit"}

def loss_and_gradient(function, logits):
    logits = logits.clone().requires_grad_()
    loss = function(logits, target)
    return loss, *torch.autograd.grad(loss, logits)

def check(function):
    logits = torch.randn(4, 9, dtype=torch.float64)
    torch.testing.assert_close(loss_and_gradient(function, logits), loss_and_gradient(F.cross_entropy, logits))
    if hasattr(function, "_torchdynamo_orig_callable"):
        return  # which torch 2.10 and before, and 2.15, refuse to compile under the caller's fake mode
    with FakeTensorMode():
        assert function(torch.empty(4, 9), torch.empty(4, dtype=torch.int64)).shape == ()

def check_everything(function):
    check(function)
    torch._dynamo.reset()
    check(torch.compile(function, backend="aot_eager", fullgraph=True))
    logits = torch.randn(4, 9, dtype=torch.float64)
    one_by_one = torch.stack([F.cross_entropy(logits[None, n], target[None, n]) for n in range(4)])
    torch.testing.assert_close(torch.vmap(function)(logits[:, None], target[:, None]), one_by_one)
    hessian = torch.func.hessian(function)(logits, target)
    torch.testing.assert_close(hessian, torch.func.hessian(F.cross_entropy)(logits, target))

check(compiled_first)
"""

EVERY_MODULE = """
for module in pkgutil.walk_packages(npu_ce_jit.__path__, "npu_ce_jit."):
    importlib.import_module(module.name)
modules = ours()
assert len(modules) > 50
for name in sorted(modules):
    importlib.reload(modules[name])
    check(first_cross_entropy)
    check(npu_ce_jit.cross_entropy)
check_everything(npu_ce_jit.cross_entropy)
assert npu_ce_jit.info()["backend"] == BACKEND
"""

AGAIN = """
for _ in range(2):
    for name in ours():
        del sys.modules[name]
    import npu_ce_jit
    assert npu_ce_jit is not first
    check_everything(npu_ce_jit.cross_entropy)
    check_everything(first_cross_entropy)
    assert npu_ce_jit.info()["backend"] == BACKEND
check(compiled_first)
check(first.CrossEntropyLoss())  # torch.compile of what calls a function of the first import looks in the new module
"""


def _run(code: str, backend: str, **variables: str) -> None:
    done = torch_processes.start(f"BACKEND = {backend!r}\n{CHECKS}{code}", os.environ | variables).wait(600.0)
    assert done.returncode == 0, done.stderr
    # Torch reports there a kernel that overrides another; of itself it warns of much else.
    assert [line for line in done.stderr.splitlines() if "verrid" in line] == []


both_ways = pytest.mark.parametrize("code", [EVERY_MODULE, AGAIN], ids=["every module", "imported again"])


@needs_the_library
@both_ways
def test_the_kernels_stay_and_every_function_computes(code):
    _run(code, "cpp")


@pytest.mark.exhaustive
@both_ways
def test_the_reference_stays_as_well(tmp_path, code):
    nowhere = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path), "TMPDIR": str(tmp_path), "NPU_CE_JIT_PREBUILT_DIR": ""}
    _run(code, "reference", NPU_CE_JIT_BUILD="never", NPU_CE_JIT_LOG="warning", **nowhere)


EDIT = """
import sys, torch
import npu_ce_jit
from npu_ce_jit import cross_entropy
from pathlib import Path
from torch._subclasses.fake_tensor import FakeTensorMode

def shape(function):
    with FakeTensorMode():
        return tuple(function(torch.empty(4, 9), torch.zeros(4, dtype=torch.int64), reduction="none").shape)

assert shape(cross_entropy) == (4,)
file = Path(npu_ce_jit.op.meta.__file__)
text = file.read_text("utf-8")
assert "loss_shape = (rows,) if" in text
file.write_text(text.replace("loss_shape = (rows,) if", "loss_shape = (7,) if"), "utf-8")
"""

TAKE_OUT = """
for name in [name for name in sys.modules if name.partition(".")[0] == "npu_ce_jit"]:
    del sys.modules[name]
import npu_ce_jit
assert shape(npu_ce_jit.cross_entropy) == (7,)
assert shape(cross_entropy) == (7,), "there is one operator, and the last import made it"
"""

# What IPython's %autoreload 2 does to each function of an edited module.
PATCH = """
import importlib
meta = npu_ce_jit.op.meta
known = meta.forward
importlib.reload(meta)
known.__code__ = meta.forward.__code__
assert shape(cross_entropy) == (7,)
"""

OTHER_SCHEMA = """
import sys
import npu_ce_jit
from pathlib import Path
file = Path(npu_ce_jit.op.schema.__file__)
file.write_text(file.read_text("utf-8").replace("float softcap, float logit", "float softcap, float an"), "utf-8")
for name in [name for name in sys.modules if name.partition(".")[0] == "npu_ce_jit"]:
    del sys.modules[name]
try:
    import npu_ce_jit
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("reload", [TAKE_OUT, PATCH], ids=["imported again", "autoreload"])
def test_an_edit_of_the_operators_python_counts_from_then_on(tmp_path, reload):
    run_python(
        copy_package(tmp_path / "site"), EDIT + reload, NPU_CE_JIT_BUILD="never", NPU_CE_JIT_CACHE_DIR=str(tmp_path)
    )


def test_an_operator_that_takes_other_arguments_needs_a_new_python(tmp_path):
    site = copy_package(tmp_path / "site")
    done = run_python(site, OTHER_SCHEMA, NPU_CE_JIT_BUILD="never", NPU_CE_JIT_CACHE_DIR=str(tmp_path))
    assert "Start a new Python." in done.stdout
