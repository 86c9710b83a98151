# SPDX-License-Identifier: Apache-2.0
"""What this machine can show. Every skip comes from a probe here, and says why."""

from __future__ import annotations

import os

import pytest

from npu_ce_jit import bootstrap

_session = bootstrap.current()
assert _session is not None

needs_the_library = pytest.mark.skipif(
    _session.backend != "cpp", reason=f"runs on the compiled kernels, and there are none: {_session.problem}"
)


def available_bytes() -> int:
    """Memory that is free for use."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
