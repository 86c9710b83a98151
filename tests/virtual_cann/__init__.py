# SPDX-License-Identifier: Apache-2.0
"""An Ascend NPU where there is none. README.md says how to use it; kernels.py and observe.py are what tests import."""
