# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md says what the tests demonstrate, no more and no less."""

from __future__ import annotations

import compatibility
import pytest
from peers import GROUPS, PEERS, PEERS_OF, SOURCES

pytestmark = pytest.mark.skipif(
    not compatibility.PAGE.parent.is_dir(), reason="the package under test is installed, not a checkout"
)
FEATURES = [feature for rows in GROUPS.values() for feature in rows]


def test_every_row_has_a_test_and_every_marked_test_a_row() -> None:
    assert len(FEATURES) == len(set(FEATURES)) > 40
    assert {test.feature for test in compatibility.shown()} == set(FEATURES)


def test_the_page_is_what_its_program_writes() -> None:
    written = compatibility.PAGE.read_text("utf-8")
    assert written == compatibility.page(list(compatibility.shown())), "run python tests/programs/compatibility.py"


def test_every_peer_has_a_source_and_a_cell_in_each_row() -> None:
    assert set(SOURCES) == {*PEERS, *(peer for peers in PEERS_OF.values() for peer in peers)}
    for group, rows in GROUPS.items():
        peers = PEERS_OF.get(group, PEERS)
        assert all(len(cells) == len(peers) and all(cells) for cells in rows.values())


def test_a_row_without_a_test_says_so() -> None:
    page = compatibility.page([])
    assert f"| {FEATURES[0]} |  |  | " in page
