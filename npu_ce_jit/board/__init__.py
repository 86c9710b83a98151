# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit board`: asks a chip what only a chip can answer. `questions` has the list, `assumed` what the
virtual NPU of the sources takes the answers to be, `run` asks and writes the file.
"""
