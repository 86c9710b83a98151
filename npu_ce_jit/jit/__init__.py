# SPDX-License-Identifier: Apache-2.0
"""Compilers, caches and locks. Nothing here knows what the library computes."""
