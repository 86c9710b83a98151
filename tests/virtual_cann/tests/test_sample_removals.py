# SPDX-License-Identifier: Apache-2.0
"""The virtual NPU notices every barrier, flag or queue call that is removed from the sample kernels."""

from __future__ import annotations

import pytest
from remove_synchronisation import HARMLESS, KERNELS, Verdict, judge

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module", params=HARMLESS)
def judged(request: pytest.FixtureRequest) -> tuple[str, list[Verdict]]:
    return request.param, judge(KERNELS / f"{request.param}.asc")


def test_every_removal_is_reported(judged: tuple[str, list[Verdict]]) -> None:
    name, verdicts = judged
    survivors = {verdict.removal.line for verdict in verdicts if not verdict.strict}
    assert survivors == set(HARMLESS[name])


def test_every_kind_of_synchronisation_is_removed(judged: tuple[str, list[Verdict]]) -> None:
    name, verdicts = judged
    source = (KERNELS / f"{name}.asc").read_text()
    for call in ("PipeBarrier<", "SetFlag<", "WaitFlag<", ".EnQue(", "DeQue<", "AllocTensor<", ".FreeTensor("):
        assert sum(call in verdict.removal.text for verdict in verdicts) == source.count(call)
