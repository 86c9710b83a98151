# SPDX-License-Identifier: Apache-2.0
"""sphinx-build -W docs site: the pages of this directory, and the API from the docstrings."""

from __future__ import annotations

import os

os.environ.setdefault("NPU_CE_JIT_BUILD", "never")  # docstrings need no kernels

import npu_ce_jit

project = "npu_ce_jit"
author = "the npu_ce_jit authors"
version = release = npu_ce_jit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1200px"}
myst_heading_anchors = 3
autodoc_typehints = "none"  # signatures have them
autodoc_member_order = "bysource"
napoleon_use_rtype = False
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository that are no pages
