# SPDX-License-Identifier: Apache-2.0
"""A virtual Ascend NPU for machines without one. README.md says how to use it; tests import kernels and observe."""
