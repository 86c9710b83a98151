# SPDX-License-Identifier: Apache-2.0
"""The commands of `python -m npu_ce_jit`."""
