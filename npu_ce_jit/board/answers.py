# SPDX-License-Identifier: Apache-2.0
"""The file of answers: JSON with related values on one line, and nothing that identifies the machine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

_WIDTH = 118
WHAT = (
    "What one chip answers to `python -m npu_ce_jit board`, and what the virtual NPU of the sources assumes. It holds "
    "no name, path or environment of the machine. Times mean something on a chip alone."
)


def write(file: Path, report: dict[str, Any]) -> None:
    """Writes the file in one step, so that a reader finds the last file or this one. Raises OSError."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(text_of(_without_paths(report)) + "\n", "utf-8")
    os.replace(unfinished, file)


def text_of(value: Any, indent: str = "") -> str:
    """The value as JSON, on one line where it fits."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(indent) + len(line) <= _WIDTH or not value:
        return line
    inner = f"{indent}  "
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {text_of(item, inner)}" for key, item in value.items()]
        opening, closing = "{", "}"
    else:
        items = [text_of(item, inner) for item in value]
        opening, closing = "[", "]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{closing}"


def _without_paths(value: Any) -> Any:
    """Shortens paths in all texts: that of a source to its file's name, any other to `<path>`."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return re.sub(r"(?<![\w.])~?(?:/[^\s/:'\",;()]+)+/?", _shortened, value) if isinstance(value, str) else value


def _shortened(path: re.Match[str]) -> str:
    name = path[0].rpartition("/")[2]
    return name if re.fullmatch(r"[\w.]+\.(?:asc|h|cpp|py)", name) else "<path>"
