# SPDX-License-Identifier: Apache-2.0
"""What this process runs on, what the cache holds and what was found on this machine, for people and for programs."""

from __future__ import annotations

import html
import json
from typing import Any

from npu_ce_jit._version import __version__
from npu_ce_jit.bootstrap import Kernels, Session
from npu_ce_jit.jit import inventory
from npu_ce_jit.jit.store import Store


class Info(dict[str, Any]):
    """Plain data, ready for JSON, that shows itself well.

    Keys: npu_ce_jit (version), sources (their directory), backend (of CPU calls), cpu and npu (state, key, library,
    rung, rebuilt_from, problem), seconds (of import, by step), roots (of the cache), entries (in it), found (on this
    machine, with the evidence).
    """

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self._lines())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._lines()
        )
        return f"<table>{rows}</table>"

    def _lines(self) -> list[tuple[str, str]]:
        lines = [("npu_ce_jit", self["npu_ce_jit"])]
        for name, title in (("cpu", "CPU kernels"), ("npu", "NPU kernels")):
            kernels = self[name]
            lines.append((title, kernels["state"] + (f", {kernels['library']}" if kernels["library"] else "")))
            more = {"rebuilt from": kernels["rebuilt_from"], "problem": kernels["problem"]}
            lines += [(f"{title}, {what}", text) for what, text in more.items() if text]
        lines += [("cache", f"{root['path']} ({root['origin']})") for root in self["roots"]]
        lines += [(f"cache, {one['kind']}", one["path"]) for one in self["entries"] if one["kind"] != "note"]
        lines += [(one["name"], f"{one['value'] or 'none'} ({one['where']})") for one in self["found"]]
        return lines

    def as_json(self) -> str:
        return json.dumps(self, indent=2)


def info_of(session: Session) -> Info:
    """Builds nothing and opens no library."""
    store = Store.of(session.settings)
    return Info(
        {
            "npu_ce_jit": __version__,
            "sources": str(session.sources.root_dir) if session.sources else None,
            "backend": session.backend,
            "cpu": state_of(session.cpu),
            "npu": state_of(session.npu),
            "seconds": dict(session.seconds),
            "roots": [
                {"path": str(root.path), "origin": root.origin, "read_only": root.read_only} for root in store.roots
            ],
            "entries": [_entry(item) for item in inventory.items(store)],
            "found": [fact._asdict() for fact in session.toolchain],
        }
    )


def state_of(kernels: Kernels) -> dict[str, Any]:
    """One target, as `info` and `doctor` tell it to programs."""
    artifact, sources = kernels.artifact, kernels.sources
    return {
        "state": kernels.state,
        "key": kernels.key_name,
        "library": str(artifact.library) if artifact else None,
        "rung": artifact.manifest.get("rung") if artifact else None,
        "rungs": artifact.manifest.get("rungs") if artifact else None,
        "rebuilt_from": " ".join((str(sources.root_dir), *sources.define_flags)) if sources else None,
        "problem": str(kernels.problem) if kernels.problem else None,
    }


def _entry(item: inventory.Item) -> dict[str, Any]:
    manifest = item.artifact.manifest if item.artifact else {}
    return {
        "kind": item.kind,
        "key": item.key_name,
        "path": str(item.path),
        "bytes": item.size,
        "age": round(item.age),
        "problem": item.problem,
        **{name: manifest.get(name) for name in ("libraries", "compiler", "host", "started", "seconds")},
    }
