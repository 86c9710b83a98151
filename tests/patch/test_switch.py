# SPDX-License-Identifier: Apache-2.0
"""When the switch is on, for whom, what it leaves unchanged, and what others may do with F.cross_entropy meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from probes import needs_the_library
from switch_tools import runs_ours
from torch import Tensor

import npu_ce_jit

pytestmark = needs_the_library
X, TARGET = torch.linspace(-2, 3, 20).reshape(4, 5), torch.tensor([0, 4, -100, 2])


def what_the_switch_could_touch() -> tuple[Any, ...]:
    """Without __warningregistry__, in which the warnings module notes what it has warned of in a module."""
    names = {name: value for name, value in vars(F).items() if name != "__warningregistry__"}
    return F.cross_entropy, F.cross_entropy.__code__, dict(vars(F.cross_entropy)), names


UNTOUCHED = what_the_switch_could_touch()


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    npu_ce_jit.uninstall()
    assert what_the_switch_could_touch() == UNTOUCHED


def is_on() -> bool:
    _, ours = runs_ours(lambda: F.cross_entropy(X, TARGET))
    (answer, _) = npu_ce_jit.info()["answers"].values()
    assert answer["by"] == ("npu_ce_jit" if ours else "torch")
    return ours


@pytest.mark.feature("install and uninstall")
def test_install_is_not_counted() -> None:
    assert not is_on()
    npu_ce_jit.uninstall()
    for _ in range(2):
        npu_ce_jit.install()
        assert is_on()
    npu_ce_jit.uninstall()
    assert not is_on()


def test_blocks_nest_inside_what_is_installed() -> None:
    with npu_ce_jit.installed():
        with npu_ce_jit.installed():
            assert is_on()
        assert is_on()
        npu_ce_jit.uninstall()
        assert is_on(), "a block stays what it says"
    assert not is_on()
    npu_ce_jit.install()
    with pytest.raises(ZeroDivisionError), npu_ce_jit.installed():
        _ = 1 / 0
    assert is_on()
    npu_ce_jit.uninstall()
    with npu_ce_jit.installed():
        npu_ce_jit.install()
    assert is_on()


def test_on_while_any_thread_is_inside() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with npu_ce_jit.installed():
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=other)
    with npu_ce_jit.installed():
        thread.start()
        assert inside.wait(60)
    assert is_on()
    leave.set()
    thread.join()
    assert not is_on()


def test_many_threads_enter_and_leave() -> None:
    expected, wrong = F.cross_entropy(X, TARGET), []

    def enter_and_leave() -> None:
        for number in range(100):
            loss = F.cross_entropy(X, TARGET)
            with npu_ce_jit.installed():
                if number % 10 == 0 and not runs_ours(lambda: F.cross_entropy(X, TARGET))[1]:
                    wrong.append("off inside a block")
            if abs(loss - expected) > 1e-6:
                wrong.append(loss)

    threads = [threading.Thread(target=enter_and_leave) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not is_on()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_can_switch_although_another_thread_was_switching() -> None:
    stop = threading.Event()

    def keep_switching() -> None:
        while not stop.is_set():
            with npu_ce_jit.installed():
                pass

    thread = threading.Thread(target=keep_switching)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # ends a child that waits for a lock of a thread that it does not have
                npu_ce_jit.install()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def test_what_was_put_over_it_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    npu_ce_jit.install()
    torchs = F.cross_entropy

    def theirs(*arguments: Any, **options: Any) -> Tensor:
        return torchs(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(F, "cross_entropy", theirs)
        assert runs_ours(lambda: F.cross_entropy(X, TARGET))[1], "it calls the function that is redirected"
        assert npu_ce_jit.info()["answers"]["torch.nn.functional.cross_entropy"]["by"].endswith("<locals>.theirs")
        npu_ce_jit.uninstall()
        assert F.cross_entropy is theirs
        assert not runs_ours(lambda: F.cross_entropy(X, TARGET))[1]


PATCHED_BEFORE = """
import torch, torch.nn.functional as F, warnings
torchs = F.cross_entropy
def theirs(input, target): return torchs(input, target)
F.cross_entropy = theirs
import npu_ce_jit
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    npu_ce_jit.install()
print(caught[-1].category.__name__, caught[-1].filename, str(caught[-1].message))
print(F.cross_entropy is theirs, npu_ce_jit.info()["answers"]["torch.nn.functional.cross_entropy"]["by"])
F.cross_entropy = torchs
npu_ce_jit.install()
print(npu_ce_jit.info()["answers"]["torch.nn.functional.cross_entropy"]["by"])
"""

WARNINGS_ARE_ERRORS = """
import torch, torch.nn.functional as F, warnings
import npu_ce_jit
warnings.simplefilter("error", RuntimeWarning)
torchs = F.cross_entropy
F.cross_entropy = lambda input, target: torchs(input, target)
try:
    with npu_ce_jit.installed():
        print("entered")
except RuntimeWarning:
    F.cross_entropy = torchs
with npu_ce_jit.installed():
    print(npu_ce_jit.info()["answers"]["torch.nn.functional.cross_entropy"]["by"])
print(npu_ce_jit.info()["answers"]["torch.nn.functional.cross_entropy"]["by"])
"""

TAKEN_OUT_OF_SYS_MODULES = """
import sys, torch, torch.nn.functional as F
import npu_ce_jit
untouched = F.cross_entropy.__code__
npu_ce_jit.install()
with npu_ce_jit.installed():
    for name in [name for name in sys.modules if name.partition(".")[0] == "npu_ce_jit"]:
        del sys.modules[name]
    F.cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
import npu_ce_jit
print(npu_ce_jit.info()["answers"]["torch.nn.functional.cross_entropy"]["by"])
npu_ce_jit.uninstall()
print(npu_ce_jit.info()["answers"]["torch.nn.functional.cross_entropy"]["by"], F.cross_entropy.__code__ is untouched)
"""


def lines_of(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_stood_there_before_stays_and_a_warning_says_so() -> None:
    warning, stays, after = lines_of(PATCHED_BEFORE)
    assert warning.startswith("RuntimeWarning <string> npu_ce_jit: expected torch's own function in ")
    assert "got __main__.theirs: it stays" in warning
    assert stays == "True __main__.theirs"
    assert after == "npu_ce_jit"


def test_a_block_that_is_not_entered_is_not_on() -> None:
    assert lines_of(WARNINGS_ARE_ERRORS) == ["npu_ce_jit", "torch"]


def test_an_import_anew_finds_what_is_redirected() -> None:
    assert lines_of(TAKEN_OUT_OF_SYS_MODULES) == ["npu_ce_jit", "torch True"]
