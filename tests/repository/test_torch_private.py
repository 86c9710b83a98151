# SPDX-License-Identifier: Apache-2.0
"""Every private name of torch that the package uses exists in the installed torch.

A new torch that lacks one is reported with that name. Names for other versions of torch are left out: they are in the
branches that `torch_compat` does not take here.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import npu_ce_jit
from npu_ce_jit import torch_compat

PACKAGE_DIR = Path(npu_ce_jit.__file__).parent
ONLY_WITH_AN_NPU = "torch.npu"


class Names(ast.NodeVisitor):
    """The dotted names of torch in a module that have a private part, and their lines."""

    def __init__(self, tree: ast.Module) -> None:
        self.origins: dict[str, str] = {}  # local name -> what was imported from torch under it
        self.found: dict[str, int] = {}
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.partition(".")[0] == "torch":
                self.origins[alias.asname or "torch"] = alias.name if alias.asname else "torch"
                self._note(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").partition(".")[0] == "torch":
            for alias in node.names:
                self.origins[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                self._note(f"{node.module}.{alias.name}", node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        parts, value = [node.attr], node.value
        while isinstance(value, ast.Attribute):
            parts.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name) and value.id in self.origins:
            self._note(".".join([self.origins[value.id], *reversed(parts)]), node)
        else:
            self.visit(value)

    def visit_If(self, node: ast.If) -> None:
        test = ast.unparse(node.test)
        if test.startswith(("hasattr(torch.", "hasattr(nn", "_VERSION")):
            taken = node.body if eval(test, vars(torch_compat)) else node.orelse
            for statement in taken:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def _note(self, name: str, node: ast.stmt | ast.expr) -> None:
        is_private = any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
        if is_private and not name.startswith(ONLY_WITH_AN_NPU):
            self.found.setdefault(name, node.lineno)


def _uses() -> list[tuple[str, str]]:
    return [
        (name, f"{file.relative_to(PACKAGE_DIR)}:{line}")
        for file in sorted(PACKAGE_DIR.rglob("*.py"))
        for name, line in Names(ast.parse(file.read_text("utf-8"))).found.items()
    ]


def _resolve(name: str) -> Any:
    """Raises AttributeError for the first part that does not exist."""
    parts = name.split(".")
    value: Any = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], 2):
        try:
            value = getattr(value, part)
        except AttributeError:
            try:
                value = importlib.import_module(".".join(parts[:end]))
            except ImportError:
                raise AttributeError(f"torch has no {'.'.join(parts[:end])}") from None
    return value


@pytest.mark.parametrize(("name", "place"), _uses(), ids=lambda value: value)
def test_torch_has_each_private_name_that_is_used(name: str, place: str) -> None:
    _resolve(name)


def averaging_groups_of_two_kinds(rank: int) -> None:
    module = torch.nn.Linear(2, 2)
    fully_shard(module, mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard")))
    groups = torch_compat.averaging_groups(fully_shard.state(module))  # type: ignore[attr-defined]
    assert [group.size() for group in groups] == [1, 1]


def test_fully_shard_has_each_private_attribute_that_is_read() -> None:
    """A missing attribute raises AttributeError with its name."""
    run_on_ranks(1, averaging_groups_of_two_kinds)


def test_private_names_are_found_in_every_form_and_a_missing_one_is_named() -> None:
    code = (
        "import torch\nfrom torch.autograd import forward_ad as ad\nfrom torch._C import _gone\nad._x.y\ntorch._VF.z\n"
    )
    assert Names(ast.parse(code)).found == {"torch._C._gone": 3, "torch.autograd.forward_ad._x.y": 4, "torch._VF.z": 5}
    with pytest.raises(AttributeError, match=r"torch has no torch\._C\._gone"):
        _resolve("torch._C._gone")
    assert {"torch._C._are_functorch_transforms_active", "torch.utils._pytree._register_namedtuple"} <= {
        name for name, _ in _uses()
    }


def test_no_other_module_asks_for_torchs_version() -> None:
    asks = ("torch.__version__ <", "torch.__version__ >", "TorchVersion", "torch.version.__version__", "_VERSION ")
    for file in PACKAGE_DIR.rglob("*.py"):
        text = file.read_text("utf-8")
        assert file.name == "torch_compat.py" or not any(word in text for word in asks), file
    for file in (npu_ce_jit.jit.sources.Sources.installed().root_dir / "csrc").rglob("*.[hc]*"):
        assert file.name == "torch_compat.h" or "TORCH_VERSION" not in file.read_text("utf-8"), file
