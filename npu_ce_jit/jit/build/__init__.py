# SPDX-License-Identifier: Apache-2.0
"""From sources to a library in the cache."""
