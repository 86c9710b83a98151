# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit board`: measures on an NPU what no manual says. `questions` has the list, `assumed` the answers
that the virtual NPU (tests/virtual_cann) assumes; `run` asks and writes the file of answers.
"""
