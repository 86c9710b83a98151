# SPDX-License-Identifier: Apache-2.0
"""Makes all that a program needs to see an NPU here, on first use; later calls find it in the cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from virtual_cann.cache import PreparationError, build_once, cache_dir
from virtual_cann.environment import environment, libclang
from virtual_cann.layouts import LAYOUTS, VIRTUAL_CANN, Layout, build_tree, tree_variables
from virtual_cann.runtime_library import content_hash, runtime_library


@dataclass(frozen=True)
class Prepared:
    layout: Layout
    environment: Path  # a Python environment with torch_npu
    home: Path  # the CANN tree
    library: Path  # libascendcl.so

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    @property
    def bisheng(self) -> Path:
        return self.home / self.layout.compiler_dir / "bisheng"

    def variables(self, callers: Mapping[str, str]) -> dict[str, str]:
        """The caller's environment variables, with those that CANN's set_env.sh and activating the environment set."""
        variables = tree_variables(self.home, self.layout, callers)
        variables["PATH"] = f"{self.environment / 'bin'}{os.pathsep}{variables['PATH']}"
        variables["VIRTUAL_ENV"] = str(self.environment)
        variables.pop("PYTHONHOME", None)  # would name the caller's library; `activate` removes it too
        variables.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)  # so that `import torch` loads torch_npu here
        return variables


def prepare(generation: float | None = None, variables: Mapping[str, str] = os.environ) -> Prepared:
    """Raises PreparationError. Safe for concurrent callers; a warm call reads a few small files."""
    layout = _layout(generation or variables.get("VIRTUAL_CANN_LAYOUT") or 9.1)
    cache = cache_dir(variables)
    python = environment(cache)
    acl_headers = _acl_headers(python)
    library = runtime_library(cache, acl_headers, layout)
    content = content_hash(_code(), f"{VIRTUAL_CANN} {python.name} {library.parent.parent.name}")
    home = build_once(
        cache / "trees" / f"cann-{layout.version}-{content}",
        f"laying out CANN {layout.version}",
        lambda private: build_tree(private, layout, library, acl_headers, libclang(python), content),
    )
    return Prepared(layout, python, home, library)


def _code() -> list[Path]:
    """The files that decide what a tree's compiler makes of a source. Their hash goes into library caches' keys."""
    files = [VIRTUAL_CANN / "layouts.py", VIRTUAL_CANN / "bin" / "bisheng"]
    for directory, suffix in (("compiler", ".py"), ("include", ".h"), ("machine", ".h")):
        files += sorted((VIRTUAL_CANN / directory).rglob(f"*{suffix}"))
    return files


def _layout(generation: float | str) -> Layout:
    layout = next((layout for layout in LAYOUTS.values() if f"{layout.generation:g}" == str(generation)), None)
    if layout is None:
        known = ", ".join(f"{known:g}" for known in LAYOUTS)
        raise PreparationError(f"VIRTUAL_CANN_LAYOUT is {generation!r}: expected one of {known}")
    return layout


def _acl_headers(python: Path) -> Path:
    found = sorted(python.glob("lib/python3*/site-packages/torch_npu/include/third_party/acl/inc/acl"))
    if not found:
        raise PreparationError(f"{python} has no torch_npu with ACL headers: remove that directory and run again")
    return found[0]
