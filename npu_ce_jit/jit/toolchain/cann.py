# SPDX-License-Identifier: Apache-2.0
"""Where CANN is installed and which version it is, from files alone."""

import hashlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from npu_ce_jit.jit.toolchain.finding import Finding
from npu_ce_jit.settings import Settings

_PREFIX = Path("/usr/local/Ascend")
_INSTALL_DIRS = ("ascend-toolkit/latest", "cann", "latest")  # 8.x, 8.5 and later, both

# (file below CANN's home, pattern of the version in it), the most precise first.
_VERSION_FILES = (
    ("{machine}-linux/ascend_toolkit_install.info", r"^version=(\S+)"),
    ("version.cfg", r"^toolkit_(?:running|installed)_version=\[[^:\]]*:([^\]]+)\]"),
    ("compiler/version.info", r"^version_dir=(\d\S*)"),
    ("compiler/version.info", r"^Version=(\S+)"),
    ("share/info/asc-devkit/version.info", r"^Version=(\S+)"),
    ("runtime/version.info", r"^Version=(\S+)"),
    ("opp/version.info", r"^Version=(\S+)"),
)
_SET_ENV = "Run `source <CANN>/set_env.sh`, or unset {variable}."


def find_cann_home(settings: Settings) -> Finding:
    """The first of three variables that is set, else the directories that CANN's installer proposes.

    A variable that points nowhere is reported, never replaced by a default: the user meant that place.
    """
    for variable, home in (
        ("ASCEND_HOME_PATH", settings.ascend_home),
        ("ASCEND_TOOLKIT_HOME", settings.ascend_toolkit_home),
        ("ASCEND_OPP_PATH", settings.ascend_opp and settings.ascend_opp.parent),
    ):
        if home is not None:
            fault = _fault(home)
            if fault is None:
                return Finding("CANN", str(home), variable)
            return Finding("CANN", None, f"{variable}: {home} {fault}", _SET_ENV.format(variable=variable))
    found, broken = _installed(settings)
    if found:
        others = {os.path.realpath(home): str(home) for home in found}
        others.pop(os.path.realpath(found[0]))
        more = f"; there is also {', '.join(others.values())}" if others else ""
        return Finding("CANN", str(found[0]), f"the installer's directory{more}")
    why = "; ".join(broken) or f"and neither {_PREFIX} nor ~/Ascend holds one"
    return Finding(
        "CANN", None, f"ASCEND_HOME_PATH is not set, {why}",
        "On an NPU machine: install the CANN toolkit and run `source <CANN>/set_env.sh`.",
    )  # fmt: skip


def find_cann_version(home: Finding) -> tuple[Finding, Finding]:
    """The version that CANN's own files state, and a digest of the file that states it.

    Both are the same through a symbolic link and after a move. The digest distinguishes installations of one version,
    such as a patched one.
    """
    if home.value is None:
        absent = Finding("CANN version", None, home.where, home.hint)
        return absent, absent._replace(name="CANN build")
    silent = []
    for file, pattern in _version_files(home.value):
        try:
            text = file.read_text("utf-8", errors="replace")
        except OSError:
            continue
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            facts = "\n".join(line for line in text.splitlines() if "/" not in line)
            digest = hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()[:12]
            return Finding("CANN version", match[1], str(file)), Finding("CANN build", digest, str(file))
        silent.append(str(file))
    why = f"{', '.join(dict.fromkeys(silent))} states none" if silent else f"no version file in {home.value}"
    absent = Finding(
        "CANN version", None, why, f"Check that {home.value} is CANN's home, or install the toolkit again."
    )
    return absent, absent._replace(name="CANN build")


def _installed(settings: Settings) -> tuple[list[Path], list[str]]:
    """The installer's directories that can be used, and what is wrong with those that cannot."""
    prefixes = [_PREFIX, *([settings.home / "Ascend"] if settings.home else [])]
    found, broken = [], []
    for home in (prefix / name for prefix in prefixes for name in _INSTALL_DIRS):
        if os.path.lexists(home):
            fault = _fault(home)
            if fault is None:
                found.append(home)
            else:
                broken.append(f"{home} {fault}")
    return found, broken


def _fault(home: Path) -> str | None:
    if os.path.islink(home) and not os.path.exists(home):
        return f"is a link to {os.readlink(home)}, which is not there"
    if not os.path.isdir(home):
        return "is no directory"
    if not os.access(home, os.R_OK | os.X_OK):
        return "may not be read by this user"
    return None


def _version_files(home: str) -> Iterator[tuple[Path, str]]:
    for name, pattern in _VERSION_FILES:
        yield Path(home, name.format(machine=platform.machine())), pattern
