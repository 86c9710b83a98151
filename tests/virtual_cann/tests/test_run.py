# SPDX-License-Identifier: Apache-2.0
"""`run`, that is `virtual-cann` without an installation: prepares once, works from any directory, for one command.

The caller's environment is unchanged.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from virtual_cann import cache, environment
from virtual_cann.cache import PreparationError
from virtual_cann.layouts import LAYOUTS
from virtual_cann.prepare import prepare

VIRTUAL_CANN = Path(__file__).resolve().parents[1]
CHECKOUT = VIRTUAL_CANN.parents[1]

# The interpreter that a user would start `run` with, even if these tests run inside `run`.
PYTHON = environment.callers_interpreter()
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("ASCEND_", "VIRTUAL_", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "PYTHON"))
}


class Machine:
    """A copy of the virtual CANN in another place, with a cache of its own and a runtime that compiles in no time."""

    def __init__(self, root: Path) -> None:
        self.virtual_cann = root / "elsewhere" / "tests" / "virtual_cann"
        shutil.copytree(VIRTUAL_CANN, self.virtual_cann, ignore=shutil.ignore_patterns("__pycache__", "tests", "*.cpp"))
        (self.virtual_cann / "runtime" / "tiny.cpp").write_text('extern "C" int tiny() { return 1; }\n')
        self.run = self.virtual_cann / "run"
        self.cache = root / "cache"
        self.variables = {**CLEAN, "VIRTUAL_CANN_CACHE_DIR": str(self.cache)}

    def start(self, *command: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [PYTHON, self.run, *command], env={**self.variables, **variables}, cwd="/", text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *command: str, **variables: str) -> subprocess.CompletedProcess:
        process = self.start(*command, **variables)
        out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory) -> tuple[Machine, list[tuple[int, str, str]]]:
    """The only preparation from an empty cache in these tests, requested by three processes at once."""
    machine = Machine(tmp_path_factory.mktemp("machine"))
    processes = [machine.start("echo", "ready") for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    return machine, [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture
def machine(first_runs) -> Machine:
    return first_runs[0]


def _packages(python: str) -> str:
    return subprocess.check_output(
        [python, "-c", "import importlib.metadata as m; print(sorted((d.name, d.version) for d in m.distributions()))"],
        env=CLEAN, text=True,
    )  # fmt: skip


def test_first_runs_at_once_prepare_once(first_runs):
    machine, results = first_runs
    assert [(code, out) for code, out, _ in results] == [(0, "ready\n")] * 3, results
    lines = "".join(err for _, _, err in results).splitlines()
    assert sorted(re.search(r"installing|compiling|laying out", line)[0] for line in lines) == [
        "compiling", "installing", "laying out",
    ]  # fmt: skip
    for kind in ("environments", "libraries", "trees"):
        assert len([entry for entry in (machine.cache / kind).iterdir() if not entry.name.startswith(".")]) == 1
    assert machine.cache.stat().st_mode & 0o777 == 0o700


def test_a_warm_run_is_silent(machine):
    done = machine("true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_callers_environment_stays_without_torch_npu(machine):
    before = _packages(PYTHON)
    code = "import importlib.util, sys; print(importlib.util.find_spec('torch_npu').origin); print(sys.prefix)"
    origin, prefix = machine("python", "-c", code).stdout.split()
    assert origin.startswith(prefix)
    assert prefix.startswith(str(machine.cache))
    assert "torch_npu" not in before
    assert _packages(PYTHON) == before


def test_the_command_sees_the_callers_packages(machine):
    names = ("torch", "pytest", "npu_ce_jit")  # npu_ce_jit is only there in a checkout
    code = f"import importlib.util as u; print([(s := u.find_spec(n)) and s.origin for n in {names}])"
    callers = subprocess.check_output([PYTHON, "-c", code], env=CLEAN, text=True, cwd="/")
    assert machine("python", "-c", code).stdout == callers


def test_scripts_of_the_callers_environment_run_in_the_other(machine, tmp_path):
    script = tmp_path / "script"
    script.write_text(f"#!{PYTHON}\nimport sys\nprint(sys.prefix, sys.argv[1:])\n")
    script.chmod(0o755)
    done = machine(str(script), "a", "b")
    assert done.stdout.startswith(str(machine.cache))
    assert done.stdout.endswith("['a', 'b']\n")


def test_the_commands_variables_are_cann_s_and_nothing_else_is_changed(machine):
    callers = {"LD_LIBRARY_PATH": "/some/where", "PYTHONPATH": "/its/own", "EXAMPLE": "x y"}
    done = machine("env", "-0", **callers)
    seen = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    given = {**machine.variables, **callers}
    changed = {name for name in seen | given if seen.get(name) != given.get(name)}
    home = Path(seen["ASCEND_HOME_PATH"])
    assert changed <= {
        "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH", "LD_LIBRARY_PATH", "PATH", "VIRTUAL_ENV", "_",
    }  # fmt: skip
    assert seen["ASCEND_TOOLKIT_HOME"] == str(home)
    assert seen["ASCEND_OPP_PATH"] == str(home / "opp")
    assert seen["LD_LIBRARY_PATH"] == f"{home}/lib64:/some/where"
    assert seen["PATH"].endswith(f":{given['PATH']}")
    assert seen["PATH"].startswith(f"{seen['VIRTUAL_ENV']}/bin:{home}/")


def test_pythonhome_does_not_reach_the_command():
    """It would point the environment's interpreter to the caller's library."""
    assert "PYTHONHOME" not in prepare().variables({**CLEAN, "PYTHONHOME": "/usr"})


def test_where_the_shell_turns_torch_s_autoload_off_the_command_finds_torch_npu_all_the_same():
    off = {**CLEAN, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    code = "import sys, torch; print('torch_npu' in sys.modules, torch.npu.is_available())"
    done = subprocess.run([PYTHON, VIRTUAL_CANN / "run", "python", "-c", code], env=off, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM)])
def test_the_exit_code_is_the_commands(machine, script, code):
    assert machine("sh", "-c", script).returncode == code


def test_another_home_and_a_checkout_that_cannot_be_written(machine, tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "virtual_cann").symlink_to(machine.cache)
    before = {path for path in machine.virtual_cann.rglob("*") if "__pycache__" not in path.parts}
    machine.virtual_cann.chmod(0o555)
    try:
        done = machine("sh", "-c", "echo $HOME", HOME=str(tmp_path), VIRTUAL_CANN_CACHE_DIR="")
    finally:
        machine.virtual_cann.chmod(0o755)
    assert (done.stdout, done.stderr) == (f"{tmp_path}\n", "")
    assert {path for path in machine.virtual_cann.rglob("*") if "__pycache__" not in path.parts} == before


def test_run_inside_run_is_the_same_machine(machine):
    code = "import sys; print(sys.prefix)"
    assert machine(str(machine.run), "python", "-c", code).stdout == machine("python", "-c", code).stdout


@pytest.mark.parametrize("generation", LAYOUTS)
def test_each_layout_looks_like_its_generation(machine, generation):
    script = "echo $ASCEND_HOME_PATH; command -v bisheng; bisheng --version; . $ASCEND_HOME_PATH/set_env.sh"
    script += "; bisheng --version"
    done = machine("bash", "-c", script, VIRTUAL_CANN_LAYOUT=f"{generation:g}")
    home, compiler, *versions = done.stdout.splitlines()
    assert compiler.startswith(home)
    assert versions[:2] == versions[2:]
    version = LAYOUTS[generation].version
    assert f"virtual CANN {version}" in versions[0]
    install_info = Path(home, f"{os.uname().machine}-linux", "ascend_toolkit_install.info").read_text("utf-8")
    assert f"\nversion={version}\n" in install_info
    assert list(Path(home).glob("include/version/*.h"))
    dangling = [path for path in Path(home).rglob("*") if path.is_symlink() and not path.exists()]
    assert dangling == []


# -- failures, and their messages


def test_without_a_command_it_lists_the_variables(machine):
    done = machine()
    assert done.returncode == 1
    variables = ["LAYOUT", "TORCH_NPU", "REFUSES", "CACHE_DIR", "SOC", "DEVICES", "MEMORY", "FAULTS", "AUTO_SYNC"]
    assert all(f"VIRTUAL_CANN_{name} " in done.stderr for name in [*variables, "REPORT"])


@pytest.mark.parametrize(
    ("command", "variables", "message"),
    [
        (["no-such-program"], {}, "no-such-program: command not found"),
        (["true"], {"VIRTUAL_CANN_LAYOUT": "7"}, "VIRTUAL_CANN_LAYOUT is '7': expected one of 8.3, 8.5, 9.1"),
        (["true"], {"PATH": "/nowhere"}, "needs g++ on PATH"),
        (["true"], {"VIRTUAL_CANN_CACHE_DIR": "/proc/none"}, "cannot make the cache /proc/none"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(machine, command, variables, message):
    done = machine(*command, **variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cache_that_others_can_write_is_refused(machine, tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    done = machine("true", VIRTUAL_CANN_CACHE_DIR=str(tmp_path))
    assert done.returncode == 1
    assert f"chmod go-w {tmp_path}" in done.stderr
    tmp_path.chmod(0o700)
    monkeypatch.setattr(cache.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PreparationError, match="belongs to another user"):
        cache.cache_dir({"VIRTUAL_CANN_CACHE_DIR": str(tmp_path)})


def test_what_nobody_used_for_a_month_is_removed_when_something_is_built(tmp_path):
    def build(name: str) -> Path:
        return cache.build_once(tmp_path / "things" / name, name, lambda private: (private / "file").touch())

    unused, used = build("unused"), build("used")
    for entry in (unused, used):
        os.utime(entry, (0, 0))
    build("used")
    assert unused.exists()  # a warm call removes nothing
    new = build("new")
    assert sorted(entry for entry in new.parent.iterdir() if entry.is_dir()) == [new, used]


def test_a_failed_installation_is_told_and_leaves_nothing(machine, tmp_path):
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_NO_INDEX": "1", "HOME": str(tmp_path)}
    done = machine("true", VIRTUAL_CANN_CACHE_DIR=str(tmp_path / "cache"), **offline)
    assert done.returncode == 1
    # torch_npu's missing requirements are installed first.
    assert re.search(r"pip could not install (?:\S+ )+for Python", done.stderr)
    assert [entry for entry in (tmp_path / "cache" / "environments").iterdir() if entry.is_dir()] == []


def test_a_runtime_that_does_not_compile_is_shown(machine):
    broken = machine.virtual_cann / "runtime" / "broken.cpp"
    broken.write_text("#error of this test\n")
    try:
        done = machine("true")
    finally:
        broken.unlink()
    assert done.returncode == 1
    assert "of this test" in done.stderr
    assert "Traceback" not in done.stderr
    assert machine("true").returncode == 0


def test_versions_are_those_of_the_package():
    pyproject = CHECKOUT / "pyproject.toml"
    if pyproject.is_file():  # not if the tests were copied elsewhere
        text = pyproject.read_text("utf-8")
        oldest = next(iter(environment.TORCH_NPU))
        assert re.search(rf'^npu = \["torch_npu>={re.escape(oldest)}\.\d+"\]$', text, re.MULTILINE)
        assert re.search(rf'^    "torch>={re.escape(oldest)}\.\d+",', text, re.MULTILINE)
        assert f'"libclang=={environment.LIBCLANG}"' in text


def test_each_torch_has_its_torch_npu():
    assert environment.torch_npu_for("2.10.0") == "2.10.0.post7"
    assert environment.torch_npu_for("2.9.1") == "2.9.0.post9"
    with pytest.raises(PreparationError, match=r"torch 2\.99\.0 has no torch_npu .* expected torch 2\.7, "):
        environment.torch_npu_for("2.99.0")


# -- the whole virtual CANN


def test_a_command_sees_an_npu():
    code = """
import torch
x = torch.arange(8.0).npu()
torch.npu.synchronize()
print(torch.npu.is_available(), x.device, x.cpu().sum().item())
"""
    done = subprocess.run([PYTHON, VIRTUAL_CANN / "run", "python", "-c", code], capture_output=True, text=True)
    assert done.stdout == "True npu:0 28.0\n", done.stderr
