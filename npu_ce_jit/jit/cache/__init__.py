# SPDX-License-Identifier: Apache-2.0
"""Where built libraries are kept, found and judged."""
