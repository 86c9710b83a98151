# SPDX-License-Identifier: Apache-2.0
"""Times and memory of this package and of other implementations."""
