# SPDX-License-Identifier: Apache-2.0
"""The order in which workers begin the tests' files."""

from __future__ import annotations

from typing import Any

import pytest


def test_the_files_to_begin_with_exist(pytestconfig: pytest.Config) -> None:
    # Not imported, because the name `conftest` may find another folder's.
    conftest: Any = pytestconfig.pluginmanager.get_plugin(str(pytestconfig.rootpath / "conftest.py"))
    assert [name for name in conftest.BEGIN_FIRST if not (conftest.TESTS_DIR / f"{name}.py").is_file()] == []
