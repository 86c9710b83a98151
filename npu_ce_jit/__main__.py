# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit`."""

import sys

from npu_ce_jit.cli.main import main

if __name__ == "__main__":  # a tool that reloads every module starts no command
    sys.exit(main())
