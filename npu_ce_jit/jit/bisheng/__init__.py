# SPDX-License-Identifier: Apache-2.0
"""CANN's compiler: the ways to call it, and the small kernels that they are tried on."""
