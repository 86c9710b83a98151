# SPDX-License-Identifier: Apache-2.0
"""For each rule, kernels that break it are refused for that rule only, and near misses run."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from virtual_cann import kernels

HERE = Path(__file__).resolve().parent
RULES = re.findall(r"^  (\w+),", (HERE.parent / "machine/rules.h").read_text(), re.MULTILINE)


@dataclass(frozen=True)
class Case:
    source: Path
    rule: str
    verdict: str
    what: str

    @property
    def kernel(self) -> str:
        return f"{self.rule}__{self.verdict}__{self.what}"


CASES = [
    Case(source, *found)
    for source in sorted((HERE / "kernels").glob("rules_*.asc"))
    for found in re.findall(r"^RULE_KERNEL\((\w+), (\w+), (\w+), \d+\)", source.read_text(), re.MULTILINE)
]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("rules")
    sources = sorted({case.source for case in CASES})
    with ThreadPoolExecutor(2) as pool:
        return dict(
            zip(sources, pool.map(lambda s: kernels.compile_kernels(s, folder / f"{s.stem}.so"), sources), strict=True)
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kernel)
def test_a_kernel_is_judged_by_the_rule_it_is_about(case: Case, libraries: dict[Path, ctypes.CDLL]) -> None:
    x = torch.linspace(-2, 2, 16384)
    with kernels.on_device(x) as x_gm, kernels.on_device(torch.empty(16384)) as y_gm:
        outcome = kernels.launch(libraries[case.source][f"launch_{case.kernel}"], x_gm, y_gm, 256)

    if case.verdict == "legal":
        assert outcome.report["violations"] == []
        assert outcome.code == 0
        return
    assert outcome.rules_broken == {case.rule}
    assert outcome.code != 0
    for violation in outcome.report["violations"]:
        assert Path(violation["file"]).name == case.source.name
        assert violation["line"] > 0
        for part in (violation["rule"], violation["expected"], violation["got"]):
            assert part
            assert part in outcome.message


LAUNCH = """
import ctypes, json, sys, torch
from virtual_cann import kernels
kernels.acl()
library, x = ctypes.CDLL(sys.argv[1]), torch.linspace(-2, 2, 16384)
with kernels.on_device(x) as x_gm, kernels.on_device(x) as y_gm:
    found = {name: kernels.launch(library[f"launch_{name}"], x_gm, y_gm, 256).rules_broken for name in sys.argv[2:]}
print(json.dumps({name: sorted(rules) for name, rules in found.items()}))
"""


def test_auto_sync_orders_vectors_and_scalars_and_no_copies(libraries: dict[Path, ctypes.CDLL]) -> None:
    """Table 3 of "Key features of synchronisation within a core"."""
    expected = {
        "vector_after_vector": [],
        "scalar_after_vector": [],
        "vector_after_scalar": [],
        "scalar_after_copy_in": [],
        "copy_out_after_scalar": [],
        "vector_after_copy_in": ["hazard_raw"],
        "copy_out_after_vector": ["hazard_raw"],
    }
    names = [f"hazard_raw__broken__{what}" for what in expected]
    library = libraries[HERE / "kernels" / "rules_order_reads.asc"]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, library._name, *names],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "VIRTUAL_CANN_AUTO_SYNC": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == dict(zip(names, expected.values(), strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("verdict", ["broken", "legal"])
def test_every_rule_has_a_kernel_that_breaks_it_and_one_that_just_keeps_it(rule: str, verdict: str) -> None:
    assert any((case.rule, case.verdict) == (rule, verdict) for case in CASES)


def test_every_kernel_is_about_a_rule_that_exists() -> None:
    assert {case.rule for case in CASES} == set(RULES)
    assert {case.verdict for case in CASES} == {"broken", "legal"}
