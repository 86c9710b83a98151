# SPDX-License-Identifier: Apache-2.0
"""What this process runs on, what the cache holds and what was found on this machine, for people and for programs."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

from npu_ce_jit._version import __version__
from npu_ce_jit.console import Line, group, plain, size_of
from npu_ce_jit.jit.cache import inventory
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.patch import exchange, switch
from npu_ce_jit.session import Kernels, State


class Info(dict[str, Any]):
    """Plain data, ready for JSON, that is shown as a table.

    Keys: npu_ce_jit (version), sources (their directory), backend (of CPU calls), cpu and npu (state, key, library,
    bisheng_flags, bisheng_flags_tried, rebuilt_from, problem), answers (of each name that `install` redirects: the
    package behind it, and how many calls were ours or passed through, by the reason), patches (of npu_ce_jit.patch,
    that are in effect), seconds (of import, by step), roots (of the cache), entries (in it), found (on this machine,
    with the evidence).
    """

    def __repr__(self) -> str:
        return "\n".join(map(plain, self.lines()))

    def _repr_html_(self) -> str:
        rows = []
        for title, texts in self._groups():
            rows.append(f"<tr><th colspan='2' style='text-align:left'>{html.escape(title)}</th></tr>")
            for name, text in texts:
                cells = (html.escape(name), html.escape(text).replace("\n", "<br>"))
                rows.append("<tr>" + "".join(f"<td style='text-align:left'>{cell}</td>" for cell in cells) + "</tr>")
        return f"<table>{''.join(rows)}</table>"

    def lines(self) -> Iterator[Line]:
        """As a person reads it, for a terminal or plain."""
        for number, (title, rows) in enumerate(self._groups()):
            if number:
                yield []
            yield from group(title, rows)

    def _groups(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        yield f"npu_ce_jit {self['npu_ce_jit']}", []
        kernels = ((title, self[name]) for name, title in (("cpu", "CPU"), ("npu", "NPU")))
        yield "kernels", [(title, "\n".join(filter(None, (
            one["state"] + (f"  {one['library']}" if one["library"] else ""),
            one["rebuilt_from"] and f"rebuilt from {one['rebuilt_from']}", one["problem"],
        )))) for title, one in kernels]  # fmt: skip
        answered = [(name, _answered(answer)) for name, answer in self["answers"].items()]
        yield "answers", [*answered, *(("in effect", patch) for patch in self["patches"])]
        yield (
            "cache roots",
            [(root["origin"], root["path"] + ("  (read only)" if root["read_only"] else "")) for root in self["roots"]],
        )
        entries = [one for one in self["entries"] if one["kind"] != "note"]
        yield "entries", [(one["kind"], _shown(one)) for one in entries] or [("none", "")]
        yield "found", [(one["name"], f"{one['value'] or 'none'}  ({one['where']})") for one in self["found"]]

    def as_json(self) -> str:
        return json.dumps(self, indent=2)


def info_of(session: State) -> Info:
    """The `Info` of a session. Builds nothing and opens no library."""
    store = Store.of(session.settings)
    return Info(
        {
            "npu_ce_jit": __version__,
            "sources": str(session.sources.root_dir) if session.sources else None,
            "backend": session.backend,
            "cpu": state_of(session.cpu),
            "npu": state_of(session.npu),
            "answers": switch.answers(),
            "patches": [repr(patch) for patch in exchange.in_effect()],
            "seconds": dict(session.seconds),
            "roots": [
                {"path": str(root.path), "origin": root.origin, "read_only": root.read_only} for root in store.roots
            ],
            "entries": [_entry(item) for item in inventory.items(store)],
            "found": [fact._asdict() for fact in session.toolchain.facts().values()],
        }
    )


def state_of(kernels: Kernels) -> dict[str, Any]:
    """The kernels of one target as plain data, for `info` and `doctor`."""
    artifact, sources = kernels.artifact, kernels.sources
    return {
        "state": kernels.state,
        "key": kernels.key_name,
        "library": str(artifact.library) if artifact else None,
        "bisheng_flags": artifact.manifest.get("bisheng_flags") if artifact else None,
        "bisheng_flags_tried": artifact.manifest.get("bisheng_flags_tried") if artifact else None,
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


def _answered(answer: dict[str, Any]) -> str:
    passed = [f"{count} passed through: {reason}" for reason, count in answer["passed_through"].items()]
    return "\n".join([answer["by"], *([f"{answer['ours']} calls were ours"] if answer["ours"] else []), *passed])


def _shown(one: dict[str, Any]) -> str:
    days = one["age"] // 86400
    age = f"{days} days old" if days else "made today"
    return f"{one['path']}  ({'; '.join(filter(None, (size_of(one['bytes']), age, one['problem'])))})"
