# SPDX-License-Identifier: Apache-2.0
"""The build tools of this machine."""
