# SPDX-License-Identifier: Apache-2.0
"""CANN's compiler: the ways to call it, and what is tried on it."""
