# SPDX-License-Identifier: Apache-2.0
"""The operator from hidden states."""
