# SPDX-License-Identifier: Apache-2.0
"""Where built libraries are kept, looked up and verified."""
