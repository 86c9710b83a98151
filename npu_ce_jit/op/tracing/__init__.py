# SPDX-License-Identifier: Apache-2.0
"""What only transforms, exporters and counters ask for."""
