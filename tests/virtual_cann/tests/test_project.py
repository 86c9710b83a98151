# SPDX-License-Identifier: Apache-2.0
"""The package that pip installs from this folder works alone, and so does its README's example."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from virtual_cann import environment

FOLDER = Path(__file__).resolve().parents[1]
README = (FOLDER / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the content of the wheel, as pip installs it: programs are executable."""
    root = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(root / "dist")]
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True)
    (wheel,) = (root / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "site")
        for entry in archive.infolist():
            if entry.external_attr >> 16 & 0o111:
                (root / "site" / entry.filename).chmod(0o755)
    return root / "site"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    for name, language in (("scale.asc", "cpp"), ("scale.py", "python")):
        (text,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def run(site: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `virtual-cann python scale.py` where the checkout is not on the path."""
    code = "from virtual_cann import command; print(command.__file__); command.main()"
    command = [environment.callers_interpreter(), "-u", "-c", code, "python", "scale.py"]
    variables = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    file, _, done.stdout = done.stdout.partition("\n")
    assert file == str(site / "virtual_cann" / "command.py")
    return done


def test_a_wheel_has_the_package_and_nothing_else(site: Path) -> None:
    installed = {str(path.relative_to(site / "virtual_cann")) for path in (site / "virtual_cann").rglob("*")}
    here = {path.relative_to(FOLDER) for path in FOLDER.rglob("*") if "__pycache__" not in path.parts}
    left_out = {"tests", "README.md", "pyproject.toml"}
    assert installed == {str(path) for path in here if path.parts[0] not in left_out and path.parts[0][0] != "."}
    assert {path.name for path in site.iterdir()} == {"virtual_cann", "virtual_cann-0.1.0.dist-info"}
    commands = (site / "virtual_cann-0.1.0.dist-info" / "entry_points.txt").read_text("utf-8")
    assert "virtual-cann = virtual_cann.command:main" in commands


def test_the_readme_s_kernel_runs_on_what_was_installed(site: Path, example: Path) -> None:
    done = run(site, example)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no rule was broken\n40028 bytes read; {'microseconds'")


def test_the_readme_s_broken_kernel_is_found_out(site: Path, example: Path) -> None:
    source = example / "scale.asc"
    lines = source.read_text("utf-8").splitlines(keepends=True)
    source.write_text("".join(line for line in lines if "out.EnQue" not in line and "out.DeQue" not in line), "utf-8")
    done = run(site, example)
    assert done.returncode == 0, done.stderr  # the README's assertion on the numbers passed
    (quoted,) = re.findall(r"^    (kernel scale on device.*?)\n\n", README, re.DOTALL | re.MULTILINE)
    assert " ".join(quoted.split()) in done.stdout


def test_the_project_asks_for_the_libclang_that_the_environment_has() -> None:
    assert f'"libclang=={environment.LIBCLANG}"' in (FOLDER / "pyproject.toml").read_text("utf-8")
