# SPDX-License-Identifier: Apache-2.0
"""Where CANN is installed and which version it is, from files alone."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from npu_ce_jit.jit.evidence import Evidence
from npu_ce_jit.settings import Settings

_INSTALL_DIRS = ("ascend-toolkit/latest", "cann", "latest")  # 8.x, 8.5 and later, both

# (file below CANN's home, what states the version in it), the most telling first.
_VERSION_FILES = (
    ("{machine}-linux/ascend_toolkit_install.info", r"^version=(\S+)"),
    ("version.cfg", r"^toolkit_(?:running|installed)_version=\[[^:\]]*:([^\]]+)\]"),
    ("compiler/version.info", r"^version_dir=(\S+)"),
    ("compiler/version.info", r"^Version=(\S+)"),
    ("runtime/version.info", r"^Version=(\S+)"),
    ("opp/version.info", r"^Version=(\S+)"),
)


def find_cann_home(settings: Settings) -> Evidence:
    """ASCEND_HOME_PATH where it is set, else the directories that CANN's installer proposes."""
    if settings.ascend_home is not None:
        if os.path.isdir(settings.ascend_home):
            return Evidence("CANN", str(settings.ascend_home), "ASCEND_HOME_PATH")
        return Evidence(
            "CANN", None, f"ASCEND_HOME_PATH={settings.ascend_home} is no directory",
            "Run `source <CANN>/set_env.sh`, or unset ASCEND_HOME_PATH.",
        )  # fmt: skip
    prefixes = [Path("/usr/local/Ascend"), *([settings.home / "Ascend"] if settings.home else [])]
    for prefix in prefixes:
        for name in _INSTALL_DIRS:
            # Path.is_dir raises where a parent may not be entered.
            if os.path.isdir(prefix / name):
                return Evidence("CANN", str(prefix / name), "the installer's directory")
    looked = " and ".join(str(prefix) for prefix in prefixes)
    return Evidence(
        "CANN", None, f"ASCEND_HOME_PATH is not set and {looked} hold none",
        "On an NPU machine: install CANN and run `source <CANN>/set_env.sh`.",
    )  # fmt: skip


def find_cann_version(home: Evidence) -> Evidence:
    """The version that CANN's own files state; the same through a symbolic link as without."""
    if home.value is None:
        return Evidence("CANN version", None, home.where, home.cure)
    for name, pattern in _VERSION_FILES:
        file = Path(home.value) / name.format(machine=platform.machine())
        try:
            match = re.search(pattern, file.read_text("utf-8", errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if match:
            return Evidence("CANN version", match[1], str(file))
    return Evidence(
        "CANN version", None, f"no version file in {home.value}", "Check that ASCEND_HOME_PATH is CANN's home.",
    )  # fmt: skip
