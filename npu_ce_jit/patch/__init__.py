# SPDX-License-Identifier: Apache-2.0
"""torch's and torch_npu's own names, answered by this package."""
