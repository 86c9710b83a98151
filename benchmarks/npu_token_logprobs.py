# SPDX-License-Identifier: Apache-2.0
"""What entropy beside each token's log-probability costs on an NPU, against the loss alone, by the virtual NPU.

    python benchmarks/npu_token_logprobs.py [4096x151936 ...]

A step is forward and backward from logits, with reduction "none". A line has its microseconds, and their ratio by the
table of rates, with all rates at their fast and at their slow ends, and at the worst of all ends, those of a single
rate included. The bar is 1.1 for the first three.

From hidden states, a step has one more forward and four matrix products, with entropy and without. The last column is
the number of features from which entropy costs at most 15 % there, if the products run at the cube unit's peak; the
slower they are, the fewer features it takes. Of large launches every nth block runs, as in npu_never_slower.py.
"""

from __future__ import annotations

import argparse
import math
import sys

from npu_call import BY_ROW, CHIP, DTYPES, Case, Measured, measure
from npu_never_slower import case_of, shape_of
from npu_traffic import ENDS

SHAPES = ("1024x8080", "4096x32000", "1024x131072", "4096x151936")
FORMS = ("forward", "backward")
MOST, MOST_FROM_HIDDEN = 1.1, 1.15
# In 16-bit dtypes: a cube core does 16 x 16 x 16 multiply-adds a cycle, and there is one for two vector cores.
CUBE_FLOPS = CHIP.cores / 2 * CHIP.hertz * 2 * 16**3


def cases_of(shape: tuple[int, int], dtype: str) -> list[Case]:
    return [case_of(form, dtype, *shape)._replace(option=option) for option in BY_ROW for form in FORMS]


def step(measured: list[Measured], name: str) -> float:
    return sum(m.ours.times[name].estimate for m in measured)


def least_features(alone: list[Measured], with_entropy: list[Measured]) -> int:
    """The number of features from which entropy costs at most 15 %, at the worst of ENDS."""

    def of_chunks(measured: list[Measured], name: str) -> float:
        return step([measured[0], *measured], name)

    us_a_feature = 4 * 2 * alone[0].elements / CUBE_FLOPS * 1e6
    over = (of_chunks(with_entropy, name) - MOST_FROM_HIDDEN * of_chunks(alone, name) for name in ENDS)
    return max(0, math.ceil(max(over) / (MOST_FROM_HIDDEN - 1) / us_a_feature))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", type=shape_of, default=list(map(shape_of, SHAPES)), help="ROWSxCLASSES")
    cells = [(shape, dtype) for shape in parser.parse_args().shapes for dtype in DTYPES]
    measured = iter(measure([case for cell in cells for case in cases_of(*cell)]))
    missed = 0
    ends = "  ".join(f"{name:>6}" for name in ENDS)
    print(f"{'':24} {'loss, us':>10} {'and entropy':>12}   {ends}   {'worst end':26} features")
    for (rows, classes), dtype in cells:
        alone, with_entropy = ([next(measured) for _ in FORMS] for _ in BY_ROW)
        ratios = {name: step(with_entropy, name) / step(alone, name) for name in alone[0].ours.times}
        worst = max(ratios, key=lambda name: ratios[name])
        met = all(ratios[name] <= MOST for name in ENDS)
        missed += not met
        print(
            f"{dtype} {f'{rows}x{classes}':18} {step(alone, 'table'):10.1f} {step(with_entropy, 'table'):12.1f}   "
            f"{'  '.join(f'{ratios[name]:6.3f}' for name in ENDS)}   {ratios[worst]:.3f} {worst:20} "
            f">= {least_features(alone, with_entropy):<5} {'met' if met else 'MISSED'}",
            flush=True,
        )
    if missed:
        sys.exit(f"{missed} of {len(cells)} cells take more than {MOST} times as long with entropy")


if __name__ == "__main__":
    main()
