# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit`."""

import sys

from npu_ce_jit.cli import main

sys.exit(main())
