# SPDX-License-Identifier: Apache-2.0
"""Each set of bisheng's flags, on a virtual CANN that refuses all sets before it: the package's own kernels compile,
link, load and are right. Toys stand for kernels that a flag set refuses
although it takes the probe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from locations import CHECKOUT, ON_NPU
from toy_package import copy_package, run_python_from_the_start, write_npu_sources
from virtual_cann.prepare import prepare

from npu_ce_jit import bootstrap
from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS

NAMES = [flag_set.name for flag_set in FLAG_SETS]

# Flag set -> (generation of CANN, what it refuses): this flag set is then the first that works.
REFUSALS = {
    "asc": ("9.1", ""),
    "asc-dirs": ("9.1", "asc-dirs"),
    "cce-npu-arch": ("9.1", "asc"),
    "cce-soc": ("9.1", "asc,xcce-npu-arch"),
    "cce-vec": ("9.1", "asc,xcce-npu-arch,soc"),
    "cce-two-steps": ("9.1", "asc,several-units"),
    "cce-one-unit": ("9.1", "asc,several-units,fatobj-link"),
}


def _copy_cpu_library(cache_dir: Path) -> None:
    """This process's, which would take longer to build than the kernels that the test is about."""
    artifact = bootstrap.current().cpu.artifact
    assert artifact is not None
    key_dir = artifact.entry_dir.parent
    shutil.copytree(key_dir, cache_dir / key_dir.parent.name / key_dir.name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_each_flag_set_builds_kernels_that_pass_the_self_check(tmp_path: Path, name: str) -> None:
    layout, refuses = REFUSALS[name]
    _copy_cpu_library(tmp_path)
    done = subprocess.run(
        [*ON_NPU, "python", "-m", "npu_ce_jit", "doctor", "--json"],
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])),
            "VIRTUAL_CANN_LAYOUT": layout, "VIRTUAL_CANN_REFUSES": refuses, "NPU_CE_JIT_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)
    npu = report["npu"]
    assert npu["bisheng_flags"] == name, (npu["problem"], done.stderr)
    assert [reported.partition(": ")[0] for reported in npu["bisheng_flags_tried"]] == NAMES[: NAMES.index(name) + 1]
    (check,) = (check for check in report["checks"] if check["name"] == "NPU self-check")
    assert (check["verdict"], check["found"]) == ("ok", "passed"), check


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("refuses", "flag_set", "said"),
    [
        # Compiling: three units in one command, where the probe has two.
        ("units>2", "cce-two-steps", "3 device sources in one command"),
        # Linking, also in two steps.
        ("link-units>2", "cce-one-unit", "error"),
    ],
)
def test_a_build_whose_probe_passes_and_whose_kernels_fail_ends_on_another_flag_set(
    tmp_path: Path, refuses: str, flag_set: str, said: str
) -> None:
    prepare()  # so that its time does not count in the process's
    site_dir = copy_package(tmp_path / "site")
    write_npu_sources(site_dir / "npu_ce_jit")
    for name in ("two", "three"):
        toy = (site_dir / "npu_ce_jit/ascendc/toy.asc").read_text("utf-8")
        (site_dir / f"npu_ce_jit/ascendc/{name}.asc").write_text(toy.replace("toy_", f"{name}_"), "utf-8")
    code = """
import ctypes, json, torch, torch_npu, npu_ce_jit
npu = npu_ce_jit.bootstrap.current().npu
manifest = dict(npu.artifact.manifest) if npu.artifact else str(npu.problem)
out = torch.zeros(64, device="npu")
glue = ctypes.CDLL(str(npu.artifact.library))
glue.toy_glue(ctypes.c_void_p(torch.npu.current_stream().npu_stream), ctypes.c_void_p(out.data_ptr()))
torch.npu.synchronize()
print(json.dumps([manifest, out.cpu().unique().tolist()]))
"""
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "VIRTUAL_CANN_REFUSES": refuses}
    done = run_python_from_the_start(site_dir, code, (*ON_NPU, "python"), **variables)
    manifest, filled = json.loads(done.stdout.splitlines()[-1])
    assert manifest["bisheng_flags"] == flag_set
    for name, reported in zip(NAMES, manifest["bisheng_flags_tried"][:-1], strict=False):
        assert reported.startswith(f"{name}: takes the probe and not the kernels: ")
        assert said in reported
    assert filled == [42.0]
