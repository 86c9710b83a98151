# SPDX-License-Identifier: Apache-2.0
"""The order in which several workers begin the files of tests."""

from __future__ import annotations

from conftest import BEGIN_FIRST, TESTS_DIR


def test_the_files_to_begin_with_exist() -> None:
    assert [name for name in BEGIN_FIRST if not (TESTS_DIR / f"{name}.py").is_file()] == []
