# SPDX-License-Identifier: Apache-2.0
"""What users call: the losses, and the modules around them."""
