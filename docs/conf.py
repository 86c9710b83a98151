# SPDX-License-Identifier: Apache-2.0
"""sphinx-build -W docs site: the pages of this directory, and the API from the docstrings."""

from __future__ import annotations

import os
import re
from pathlib import Path

os.environ.setdefault("NPU_CE_JIT_BUILD", "never")  # docstrings need no kernels

from sphinx.application import Sphinx

import npu_ce_jit

project = "npu_ce_jit"
author = "the npu_ce_jit authors"
version = release = npu_ce_jit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"npu_ce_jit {version}"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"  # a session is copied without its prompts and answers
myst_heading_anchors = 3
default_role = "code"  # docstrings have single backquotes
autodoc_typehints_format = "short"  # Tensor, not torch.Tensor
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 60  # longer ones have an argument a line
autodoc_member_order = "bysource"
napoleon_use_rtype = False

_DOCS = Path(__file__).parent
_PAGES = {  # which page shows a file of the repository that lies outside of this directory
    "README.md": "index.md",
    "README.md#what-happens-on-import": "overview.md#what-happens-on-import",
    "README.zh-CN.md": "zh/index.md",
    "tests/virtual_cann/README.md": "virtual-cann.md",
}


def _with_links_from(page: Path, text: str, file: Path) -> str:
    """Text of a file as a page shows it: links that hold beside the file become such that hold beside the page."""

    def link(match: re.Match[str]) -> str:
        target = (file.parent / match[1]).resolve()
        if not target.is_file():
            return match[0]  # code that looks like a link, or a dead one, which sphinx reports
        in_repository = os.path.relpath(target, _DOCS.parent) + match[2]
        shown = _DOCS / _PAGES[in_repository] if in_repository in _PAGES else f"{target}{match[2]}"
        return f"]({os.path.relpath(shown, page.parent)})"

    return re.sub(r"\]\(([^()\s:#]+)(#[^()\s]*|)\)", link, text)


def _read_page(_app: Sphinx, docname: str, content: list[str]) -> None:
    page = _DOCS / f"{docname}.md"
    content[0] = _with_links_from(page, content[0], page)


def _read_include(app: Sphinx, relative_path: Path, _parent: str, content: list[str]) -> None:
    content[0] = _with_links_from(_DOCS / f"{app.env.docname}.md", content[0], _DOCS / relative_path)


def _name_language(_app: Sphinx, pagename: str, _template: str, context: dict[str, object], _doctree: object) -> None:
    if pagename.startswith("zh/"):
        context["language"] = "zh-CN"  # a browser chooses its font for Chinese by this


def setup(app: Sphinx) -> None:
    app.connect("source-read", _read_page)
    app.connect("include-read", _read_include)
    app.connect("html-page-context", _name_language)
