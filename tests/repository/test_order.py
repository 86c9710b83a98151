# SPDX-License-Identifier: Apache-2.0
"""The order in which several workers begin the files of tests."""

from __future__ import annotations

from typing import Any

import pytest


def test_the_files_to_begin_with_exist(pytestconfig: pytest.Config) -> None:
    # Not imported: by the name `conftest`, that of another folder may be found.
    conftest: Any = pytestconfig.pluginmanager.get_plugin(str(pytestconfig.rootpath / "conftest.py"))
    assert [name for name in conftest.BEGIN_FIRST if not (conftest.TESTS_DIR / f"{name}.py").is_file()] == []
