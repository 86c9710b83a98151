# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit`."""

import sys

from npu_ce_jit.cli.main import main

if __name__ == "__main__":  # so that a tool that imports every module runs no command
    sys.exit(main())
