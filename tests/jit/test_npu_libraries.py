# SPDX-License-Identifier: Apache-2.0
"""The NPU libraries from import to the first call: toy kernels, the real torch_npu, and a CANN of either generation."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from locations import ON_NPU
from toy_package import copy_package, run_python, run_python_from_the_start, write_npu_sources
from virtual_cann.prepare import prepare

from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS

PYTHON_ON_NPU = (*ON_NPU, "python")

# The toy's glue registers this: the reference, computed through the CPU, with an adjustable error.
TOY_KERNELS = """
import os, torch
from npu_ce_jit.op import reference
calls = []
def on_cpu(compute, arguments):
    device = next(a for a in arguments if isinstance(a, torch.Tensor)).device
    results = compute(*(a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments))
    return device, results
def forward(*arguments):
    calls.append("forward")
    device, results = on_cpu(reference.forward, arguments)
    return tuple((r + float(os.environ.get("TOY_ERROR", 0)) if not i else r).to(device) for i, r in enumerate(results))
def backward(*arguments):
    calls.append("backward")
    device, result = on_cpu(reference.backward, arguments)
    return result.to(device)
library = torch.library.Library("npu_ce_jit", "IMPL", "PrivateUse1")
library.impl("_forward", forward)
library.impl("_backward", backward)
"""

IMPORT = """
import ctypes, json, sys, warnings
warnings.simplefilter("ignore")
import torch, npu_ce_jit
from npu_ce_jit import bootstrap
session = bootstrap.current()
npu_at_import = session.npu
def mapped(name):
    return name in open("/proc/self/maps").read()
report = {
    "at import": session.npu.state,
    "cpu": session.cpu.state,
    "problem": str(session.npu.problem),
    "loaded at import": [n for n in ("libnpu_ce_jit_npu", "libnpu_ce_kernels", "libascendcl") if mapped(n)],
    "torch_npu at import": "torch_npu" in sys.modules,
}
"""

CALL = """
import torch_npu
x, target = torch.randn(4, 9), torch.tensor([0, 8, -100, 3])
right = torch.nn.functional.cross_entropy(x, target)
errors = []
for attempt in range(2):
    try:
        loss = npu_ce_jit.cross_entropy(x.npu(), target.npu())
        assert torch.allclose(loss.cpu(), right, atol=1e-4), (loss, right)
    except NotImplementedError as error:
        errors.append(str(error))
session = bootstrap.current()
report |= {"at call": session.npu.state, "cpu": session.cpu.state, "errors": errors}
if "toy_kernels" in sys.modules:
    report["calls"] = len(sys.modules["toy_kernels"].calls)
"""

LAUNCH = """
out = torch.zeros(64, device="npu")
library = session.npu.artifact.library
stream = torch.npu.current_stream().npu_stream
ctypes.CDLL(str(library)).toy_glue(ctypes.c_void_p(stream), ctypes.c_void_p(out.data_ptr()))
torch.npu.synchronize()
report |= {"filled": out.cpu().unique().tolist(), "manifest": dict(session.npu.artifact.manifest)}
"""

FLAG_SET = """
kernels = npu_at_import
names = ("bisheng_flags", "bisheng_flags_tried")
report |= {name: kernels.artifact and kernels.artifact.manifest[name] for name in names}
"""

PRINT = "print(json.dumps(report))"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with toy sources for both targets, and its CPU library, built without a CANN."""
    site_dir = copy_package(tmp_path_factory.mktemp("npu") / "site")
    write_npu_sources(site_dir / "npu_ce_jit")
    (site_dir / "toy_kernels.py").write_text(TOY_KERNELS, "utf-8")
    run_python(site_dir, "import npu_ce_jit", NPU_CE_JIT_CACHE_DIR=str(site_dir.parent / "cache"))
    return site_dir


def report_of(
    site_dir: Path, *code: str, python: Sequence[str | Path] = PYTHON_ON_NPU, **variables: str
) -> dict[str, Any]:
    variables = {"NPU_CE_JIT_CACHE_DIR": str(site_dir.parent / "cache")} | variables
    out = run_python_from_the_start(site_dir, "".join((IMPORT, *code, PRINT)), python, **variables).stdout
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def test_built_at_import_loaded_at_the_first_call_checked_once_and_set_aside_if_wrong(site: Path) -> None:
    without_autoload = (*ON_NPU, "env", "TORCH_DEVICE_BACKEND_AUTOLOAD=0", "python")
    cold = report_of(site, CALL, LAUNCH, python=without_autoload)
    assert cold["at import"] == "built"
    assert cold["loaded at import"] == []
    assert cold["torch_npu at import"] is False, "torch_npu may come after us"
    assert cold["at call"] == cold["cpu"] == "loaded"
    assert cold["errors"] == []
    assert len(list((site.parent / "cache").glob("v1/*/e-*"))) == 2, "the CPU library is that of a machine without CANN"
    assert cold["filled"] == [42.0], "the glue reaches the kernels, which bisheng linked"
    assert cold["manifest"]["bisheng_flags"] == "asc"
    glue, kernels = cold["manifest"]["libraries"]
    assert glue == "libnpu_ce_jit_npu.so"
    assert re.fullmatch(r"libnpu_ce_kernels-asc-[0-9a-f]{12}\.so", kernels)
    assert "bisheng" in cold["manifest"]["bisheng"]["version"]

    warm = report_of(site, CALL, NPU_CE_JIT_BUILD="never")
    assert warm["at import"] == "built"
    assert warm["torch_npu at import"] is True
    assert warm["at call"] == "loaded"
    assert warm["calls"] == 2
    assert cold["calls"] > 2, "only the first process checks"

    # As on a chip that has not run the kernels yet, and on which they are wrong.
    (note,) = (site.parent / "cache").glob("v1/*/note-*")
    note.unlink()
    wrong = report_of(site, CALL, TOY_ERROR="0.5")
    assert wrong["at import"] == "built"
    assert wrong["at call"] == "none"
    assert wrong["cpu"] == "loaded"
    first, second = wrong["errors"]
    assert first.split(". ", 1)[1] == second.split(". ", 1)[1], "the second call is refused as the first"
    assert "fail their self-check in float32: expected loss[0] = " in first
    assert ", got " in first
    assert not list((site.parent / "cache").glob("v1/*cann*/e-*"))
    assert not list((site.parent / "cache").glob("v1/*cann*/note-*"))


@pytest.mark.exhaustive
def test_kernels_of_the_running_process_are_exchanged_before_its_first_call_and_after(site: Path) -> None:
    def rebuilt(defines: str) -> str:
        return f"result = npu_ce_jit.rebuild({defines}, device='npu')\nsession = bootstrap.current()\n"

    keep = "report.setdefault('all', []).append([result['npu']['state'], *report['filled']])\n"
    report = report_of(
        site, rebuilt("{'TOY_FILL': '7.0f'}"), CALL, LAUNCH, keep, rebuilt("{'TOY_FILL': '8.0f'}"), LAUNCH, keep,
        rebuilt("None"), LAUNCH, keep,
    )  # fmt: skip
    assert report["errors"] == []
    assert report["all"] == [["built", 7.0], ["loaded", 8.0], ["loaded", 42.0]]


@pytest.mark.exhaustive
def test_flags_whose_kernels_are_wrong_are_left_for_the_next_until_none_is_left(site: Path, tmp_path: Path) -> None:
    def start(**variables: str) -> dict[str, Any]:
        return report_of(site, CALL, FLAG_SET, NPU_CE_JIT_CACHE_DIR=str(tmp_path), **variables)

    wrong = start(TOY_ERROR="0.5")
    assert wrong["bisheng_flags"] == "asc"
    assert "expected loss[0] = " in wrong["errors"][0]
    right = start()
    assert (right["bisheng_flags"], right["errors"]) == ("asc-dirs", [])
    assert right["bisheng_flags_tried"][0].startswith(
        "asc: error: The NPU kernels fail their self-check in float32: expected loss[0] = "
    )
    (note,) = tmp_path.glob("v1/*/note-*")
    note.unlink()
    assert start(TOY_ERROR="0.5")["bisheng_flags"] == "asc-dirs"
    rejected = sorted(tmp_path.glob("v1/*/rejected-*"))
    assert len(rejected) == 2
    for name in (flag_set.name for flag_set in FLAG_SETS[2:]):  # as if each had been built and had failed
        copy = shutil.copytree(rejected[0], rejected[0].with_name(f"rejected-{name}"))
        manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
        (copy / "manifest.json").write_text(json.dumps(manifest | {"bisheng_flags": name}), "utf-8")
    none = start()
    assert none["at import"] == "none"
    every = ", ".join(flag_set.name for flag_set in FLAG_SETS)
    assert f"{every}: error: The NPU kernels fail their self-check in float32: expected loss[0] = " in none["problem"]
    assert f"{every}: error: " in none["errors"][0]
    assert not list(tmp_path.glob("v1/*cann*/e-*")), "nothing more was built"


@pytest.mark.exhaustive
def test_the_old_generation_takes_the_first_flag_set_that_it_knows(site: Path) -> None:
    report = report_of(site, CALL, LAUNCH, VIRTUAL_CANN_LAYOUT="8.3", NPU_CE_JIT_BUILD="lazy")
    assert report["at import"] == "lazy"
    assert report["at call"] == "loaded"
    assert report["errors"] == []
    assert report["filled"] == [42.0]
    assert report["manifest"]["bisheng_flags"] == "cce-soc"
    assert report["manifest"]["bisheng_flags_tried"][0].startswith("asc: ")


def test_without_npu_kernels_the_cpu_computes_and_an_npu_call_says_why(site: Path) -> None:
    report = report_of(site, CALL, NPU_CE_JIT_BISHENG="/bin/false")
    assert report["at import"] == "none"
    assert report["cpu"] == "loaded"
    assert len(report["errors"]) == 2
    for error in report["errors"]:
        assert error.startswith("npu_ce_jit has no kernels for npu:0. ")
        assert f"with none of the {len(FLAG_SETS)} sets of flags" in error
        assert "/bin/false" in error


def cut_short(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()  # removed first: a link to a file that others use
    file.write_bytes(content[: len(content) // 2])


# (what happens to CANN's directory, the message).
DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "gone": (shutil.rmtree, ("is no directory", "set_env.sh")),
    "no headers": (
        lambda home: [*map(Path.unlink, home.rglob("kernel_operator.h"))],
        ("Ascend C's headers are not in",),
    ),
    "no compiler": (lambda home: [*map(Path.unlink, home.rglob("bisheng"))], ("bisheng", "toolkit")),
    "runtime cut short": (lambda home: cut_short(home / "lib64/libascendcl.so"), ("libascendcl.so: file too short",)),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[] if name == "gone" else pytest.mark.exhaustive) for name in DAMAGES]
)
def test_a_broken_cann_costs_the_npu_and_nothing_else(site: Path, tmp_path: Path, damage: str) -> None:
    """torch_npu itself does not load either, so torch is told not to load it."""
    whole = prepare()
    home = shutil.copytree(whole.home, tmp_path / "cann", symlinks=True)
    act, said = DAMAGES[damage]
    act(home)
    variables = {k: v.replace(str(whole.home), str(home)) for k, v in whole.variables(os.environ).items()}
    variables |= {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache")}
    out = run_python_from_the_start(site, IMPORT + PRINT, (whole.python,), **variables).stdout
    report = json.loads(out.splitlines()[-1])
    assert report["at import"] == "none"
    assert report["cpu"] == "loaded"
    for part in said:
        assert part in report["problem"]
