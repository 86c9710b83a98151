# SPDX-License-Identifier: Apache-2.0
"""What a person asks or changes in a running process."""
