# SPDX-License-Identifier: Apache-2.0
"""What only vmap, exporters and flop counters use."""
