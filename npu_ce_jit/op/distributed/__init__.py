# SPDX-License-Identifier: Apache-2.0
"""Losses of ranks that share classes, rows or both."""
