# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest

from npu_ce_jit.errors import BuildError, LoadError, NpuCeJitError, SettingsError, ToolchainError
from npu_ce_jit.settings import VARIABLES, Settings


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_env({}) == Settings()


def test_every_variable_has_a_field_a_meaning_and_a_default():
    for variable in VARIABLES:
        assert variable.field in Settings._fields
        assert variable.meaning.endswith(".")
        assert variable.default == getattr(Settings(), variable.field)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("NPU_CE_JIT_BUILD", "Lazy", "lazy"),
        ("NPU_CE_JIT_CACHE_DIR", "/a b/c", Path("/a b/c")),
        ("NPU_CE_JIT_CPU_ISA", "baseline", "baseline"),
        ("NPU_CE_JIT_LOCK_TIMEOUT", "2.5", 2.5),
        ("NPU_CE_JIT_LOG", "debug", logging.DEBUG),
        ("NPU_CE_JIT_CHECK_TARGETS", "1", True),
        ("NPU_CE_JIT_HUGE_PAGES", "0", False),
        ("CXX", "ccache g++", "ccache g++"),
        ("MAX_JOBS", "3", 3),
        ("ASCEND_HOME_PATH", "/usr/local/Ascend/latest", Path("/usr/local/Ascend/latest")),
    ],
)
def test_a_good_value_is_read(name, text, value):
    settings = Settings.from_env({name: text})
    field = next(variable.field for variable in VARIABLES if variable.name == name)
    assert getattr(settings, field) == value
    assert settings.problems == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NPU_CE_JIT_BUILD", "yes"),
        ("NPU_CE_JIT_CACHE_DIR", "relative/path"),
        ("NPU_CE_JIT_CPU_ISA", "sse"),
        ("NPU_CE_JIT_LOCK_TIMEOUT", "-1"),
        ("NPU_CE_JIT_LOCK_TIMEOUT", "nan"),
        ("NPU_CE_JIT_LOCK_TIMEOUT", "soon"),
        ("NPU_CE_JIT_LOG", "loud"),
        ("NPU_CE_JIT_HUGE_PAGES", "2"),
        ("MAX_JOBS", "0"),
        ("MAX_JOBS", "-1"),
        ("MAX_JOBS", "junk"),
        ("ASCEND_HOME_PATH", ":/usr/local/Ascend"),
        ("HOME", "nowhere"),
    ],
)
def test_a_bad_value_names_variable_expected_and_got_and_counts_as_not_set(name, text):
    settings = Settings.from_env({name: text})
    variable = next(variable for variable in VARIABLES if variable.name == name)
    (problem,) = settings.problems
    assert isinstance(problem, SettingsError)
    assert problem.fact.startswith(f"{name}: expected {variable.expected}, got {text!r}")
    assert name in problem.hint
    assert getattr(settings, variable.field) == variable.default


def test_an_empty_value_counts_as_not_set():
    assert Settings.from_env({"MAX_JOBS": "", "NPU_CE_JIT_BUILD": "", "CXX": ""}).problems == ()


def test_an_unknown_name_is_told_with_the_closest_one():
    (problem,) = Settings.from_env({"NPU_CE_JIT_CACHEDIR": "/x"}).problems
    assert "NPU_CE_JIT_CACHEDIR" in problem.fact
    assert "NPU_CE_JIT_CACHE_DIR" in problem.hint


def test_the_environment_is_handed_to_children_but_never_shown():
    settings = Settings.from_env({"TOKEN": "s3cret", "PATH": "/bin"})
    assert settings.child_environment(LC_ALL="C") == {"TOKEN": "s3cret", "PATH": "/bin", "LC_ALL": "C"}
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    "error",
    [
        NpuCeJitError("A fact.", "An action."),
        SettingsError("A fact.", "An action."),
        ToolchainError("A fact."),
        LoadError("A fact.", "An action."),
        BuildError("A fact.", "An action.", "g++ -c x", ("x: error: y",), "/cache/build.log"),
    ],
)
def test_errors_survive_pickle(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert str(error).startswith(error.fact)
    assert str(error).endswith(error.hint)
