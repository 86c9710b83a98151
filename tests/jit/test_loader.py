# SPDX-License-Identifier: Apache-2.0
"""Loading from the cache or the compiler, while other processes change the same cache."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from toy_package import Toy, needs_compiler, toy

from npu_ce_jit.errors import LoadError
from npu_ce_jit.jit import loader
from npu_ce_jit.jit.build import compile
from npu_ce_jit.jit.build.compile import build
from npu_ce_jit.jit.cache.entry import Artifact
from npu_ce_jit.jit.loader import load_or_build, open_library

pytestmark = needs_compiler


def _loaded(one: Toy) -> Artifact:
    artifact = load_or_build(one.target, one.settings, one.toolchain, may_build=True)
    assert artifact is not None
    return artifact


def _come_from_another_node(artifact: Artifact) -> Artifact:
    """As if another node had built it: whether this machine can link it is unknown."""
    manifest = {**artifact.manifest, "host": "elsewhere"}
    (artifact.entry_dir / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return artifact._replace(manifest=manifest)


@pytest.mark.parametrize("found", [False, True])
def test_one_that_was_removed_before_it_could_be_loaded_is_built_again(tmp_path, monkeypatch, caplog, found):
    one = toy(tmp_path)
    if found:
        one.build()
    cleaned = []

    def clean_and_open(artifact, switches):
        if not cleaned:
            cleaned.append(artifact.entry_dir)
            shutil.rmtree(artifact.entry_dir)
        open_library(artifact, switches)

    monkeypatch.setattr(loader, "open_library", clean_and_open)
    artifact = _loaded(one)
    assert ctypes.CDLL(str(artifact.library)).toy() == 42
    assert [path.name for path in one.key_dir.iterdir()] == [artifact.entry_dir.name] != [cleaned[0].name]
    assert "linker" not in caplog.text


def test_one_that_another_node_published_while_we_waited_may_be_refused_by_our_linker(tmp_path, monkeypatch):
    one, load_library, refused = toy(tmp_path), torch.ops.load_library, []

    def load(path):
        if json.loads(Path(path).with_name("manifest.json").read_text("utf-8"))["host"] == "elsewhere":
            refused.append(path)
            raise OSError("version `GLIBCXX_9' not found")
        load_library(path)

    def build_of_another_node(*arguments):
        artifact = build(*arguments)
        return artifact if refused else _come_from_another_node(artifact)

    monkeypatch.setattr(torch.ops, "load_library", load)
    monkeypatch.setattr(compile, "build", build_of_another_node)
    artifact = _loaded(one)
    assert artifact.manifest["host"] == os.uname().nodename
    assert str(artifact.library) not in refused
    assert len(list(one.key_dir.glob("e-*"))) == 2, "the other node keeps its own"


def test_one_of_our_own_compiler_that_our_linker_refuses_is_not_built_twice(tmp_path, monkeypatch):
    one = toy(tmp_path)

    def load(_):
        raise OSError("version `GLIBCXX_9' not found")

    monkeypatch.setattr(torch.ops, "load_library", load)
    with pytest.raises(LoadError, match="GLIBCXX_9"):
        _loaded(one)
    assert len(list(one.key_dir.glob("e-*"))) == 1
