# SPDX-License-Identifier: Apache-2.0
"""What the NPU kernels move and compute on the virtual NPU, against CANN's own kernel and the bars.

    python benchmarks/npu_traffic.py [--json] [--bars] [--quick] [--plot FILE.png] [4096x8080 ...]

Traffic is over the bytes of the logits, targets and all else included; DMA is the mean size of an instruction; repeats
are vector repeats per element, conflicts the vector unit's cycles per element that UB bank conflicts take; busiest is
the bytes of the core that moves most in the largest launch, over the mean of all cores.
Estimates are microseconds on the chip of VIRTUAL_CANN_SOC, by the table of rates; after a bar on times come its figures
with all rates at their fast and at their slow ends. The bounds after an estimate are the time of the traffic alone and
that of the vector unit alone; a kernel whose copies and arithmetic overlap comes near the larger. Traffic is timed
through the L2 or HBM; where reads bypass the L2, it takes up the writes. official_npu.py says how CANN's kernel is
costed.

forward gives loss and lse, forward+log_prob what npu_cross_entropy_loss gives; backward is the same from logits and
from log_prob. --quick keeps the classes and takes fewer rows: the first and last tiles of a core weigh more then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from dataclasses import asdict
from typing import Any, NamedTuple

from npu_call import CHIP, DTYPES, FORMS, Case, Measured, measure
from official_npu import Figures

SHAPES = ["4096x8080", "4096x32000", "1024x128256", "8x152064", "65536x10", "8192x1000", "49x32000"]
OPTIONS = ("weights", "smoothing", "softcap")
OF_OPTIONS = "480x8080"
QUICK_ELEMENTS = 2_000_000
MOST_ELEMENTS = 400_000_000  # simulated in a minute, and held in memory twice


# -- the bars
class Bar(NamedTuple):
    what: str
    value: float
    limit: float
    most: bool = True
    ends: tuple[float, float] | None = None  # what a time's ratio is where all rates are fast, and where all are slow

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.most else self.value >= self.limit


ENDS = ("table", "fast", "slow")
REPEATS = {"forward": (0.066, 0.085), "forward+log_prob": (0.10, 0.135), "backward": (0.066, 0.10)}
MORE_REPEATS = {"weights": 0.05, "smoothing": 0.05, "softcap": 0.11}
# Our forms that are compared with CANN's forward, or its forward and backward; times faster in fp32, in 16 bits.
AGAINST_OFFICIAL = {
    ("forward+log_prob",): (1.4, 2.0),
    ("forward+log_prob", "backward"): (1.3, 1.6),
    ("forward", "backward"): (1.7, 2.2),
}


def times_faster(members: list[Measured], name: str) -> float:
    return sum(m.official.times[name].estimate for m in members) / sum(m.ours.times[name].estimate for m in members)


def bars(measured: list[Measured]) -> list[Bar]:
    plain = {m.case: m for m in measured}
    found = [bar for m in measured if not m.case.option for bar in bars_of_one(m)]
    for case, m in plain.items():
        if case.option:
            more = m.ours.repeats - plain[case._replace(option="")].ours.repeats
            found.append(Bar(f"{name_of(case)}, repeats added", more, MORE_REPEATS[case.option]))
    for case, m in plain.items():
        if case.form == FORMS[0] and not case.option and m.elements >= 3e7:
            for forms, times in AGAINST_OFFICIAL.items():
                members = [plain[case._replace(form=form)] for form in forms]
                faster, *ends = [times_faster(members, name) for name in ENDS]
                what = f"{' and '.join(forms)}, {name_of(case).partition(', ')[2]}, times faster than CANN's"
                found.append(Bar(what, faster, times[case.dtype != "fp32"], most=False, ends=(ends[0], ends[1])))
    return found


def bars_of_one(m: Measured) -> list[Bar]:
    form, dtype, classes = m.case.form, m.case.dtype, m.case.classes
    ours, name = m.ours, name_of(m.case)
    # What a row needs beside its logits: an int64 target, and in backward row_stats.
    of_rows = (16 if form == "backward" else 8) / classes / DTYPES[dtype].itemsize
    found = []
    if classes >= 1000:
        reads = 2 if form == "forward+log_prob" and not m.keeps_row else 1
        found.append(Bar(f"{name}, reads", ours.read, reads + 0.02))
        found.append(Bar(f"{name}, writes", ours.written, 0.01 if form == "forward" else 1.01))
    elif classes == 10:
        found += [
            Bar(f"{name}, reads over the least", ours.read / (1 + of_rows), 1.1),
            Bar(f"{name}, mean DMA", ours.dma_bytes, 8192, most=False),
            Bar(f"{name}, repeats", ours.repeats, 0.5),
        ]
    if classes >= 8080:
        found.append(Bar(f"{name}, repeats", ours.repeats, REPEATS[form][dtype != "fp32"]))
    if m.elements >= 3e7:
        over, *ends = [ours.times[name].over_bound for name in ENDS]
        found.append(Bar(f"{name}, estimate over its bound", over, 1.15, ends=(ends[0], ends[1])))
    if m.elements >= 1e6:
        found.append(Bar(f"{name}, busiest core", ours.busiest, 1.15))
    return found


# -- what is printed
def name_of(case: Case) -> str:
    option = f" with {case.option}" if case.option else ""
    return f"{case.form}{option}, {case.dtype} {case.rows}x{case.classes}"


def line(what: str, f: Figures) -> str:
    bounds = f"({f.table.traffic_bound:.0f}, {f.table.vector_bound:.0f})"
    return (
        f"{what:52} {f.read:6.3f} {f.written:7.3f} {f.dma_bytes / 1024:8.1f} {f.repeats:8.4f} {f.conflicts:9.4f} "
        f"{f.busiest:8.2f} {f.table.estimate:10.1f} {bounds:>14}"
    )


def print_table(measured: list[Measured]) -> None:
    columns = f"{'DMA KB':>8} {'repeats':>8} {'conflicts':>9} {'busiest':>8} {'us':>10} {'bounds':>14}"
    print(f"{'':52} {'read':>6} {'written':>7} {columns}")
    for m in measured:
        print(line(name_of(m.case), m.ours))
        if not m.case.option:
            print(line("    CANN's", m.official) + f" {m.official.table.estimate / m.ours.table.estimate:6.2f} x")


def plot(measured: list[Measured], file: str) -> None:
    from matplotlib.figure import Figure

    measured = [m for m in measured if not m.case.option]
    figure = Figure(figsize=(10, 0.3 * len(measured) + 1), layout="constrained")
    axes = figure.subplots()
    places = range(len(measured))
    axes.barh([p - 0.2 for p in places], [m.ours.table.estimate for m in measured], 0.4, label="npu_ce_jit")
    axes.barh([p + 0.2 for p in places], [m.official.table.estimate for m in measured], 0.4, label="CANN")
    axes.set(xscale="log", xlabel="estimate, microseconds")
    axes.set_yticks(places, [name_of(m.case) for m in measured])
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(file)


def as_json(m: Measured) -> dict[str, Any]:
    sides = {"ours": m.ours, "official": m.official}
    return m.case._asdict() | {side: asdict(f) | {"over_bound": f.table.over_bound} for side, f in sides.items()}


# -- which cases
def shape_of(text: str) -> tuple[int, int]:
    try:
        rows, classes = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ROWSxCLASSES such as 4096x8080, got {text}") from None
    return rows, classes


def cases_of(shapes: list[tuple[int, int]], quick: bool) -> list[Case]:
    found = []
    for rows, classes in dict.fromkeys(shapes):
        if quick:  # as many rows for every core
            rows = min(rows, CHIP.cores * math.ceil(QUICK_ELEMENTS / CHIP.cores / classes))  # noqa: PLW2901
        if rows * classes > MOST_ELEMENTS:
            raise SystemExit(
                f"{rows}x{classes} would take too long to simulate, and figures for fewer rows are not its figures; "
                "--quick gives those of fewer rows, and says of how many"
            )
        found += [Case(form, dtype, rows, classes) for dtype in DTYPES for form in FORMS]
    return found


def cases_of_options() -> list[Case]:
    rows, classes = shape_of(OF_OPTIONS)
    pairs = [(form, dtype) for form in ("forward", "backward") for dtype in ("fp32", "bf16")]
    return [Case(form, dtype, rows, classes, option) for option in ("", *OPTIONS) for form, dtype in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", type=shape_of, default=list(map(shape_of, SHAPES)), help="ROWSxCLASSES")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--bars", action="store_true", help="check the bars, and fail where one is missed")
    parser.add_argument("--quick", action="store_true", help="the same classes, fewer rows")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the estimates")
    arguments = parser.parse_args()
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("--plot needs matplotlib: python -m pip install matplotlib")

    cases = cases_of(arguments.shapes, arguments.quick)
    if arguments.bars:
        cases += [case for case in cases_of_options() if case not in cases]
    measured = measure(cases)
    checked = bars(measured) if arguments.bars else []
    if arguments.plot:
        plot(measured, arguments.plot)
    if arguments.json:
        rows = [bar._asdict() | {"met": bar.met} for bar in checked]
        print(json.dumps({"quick": arguments.quick, "rows": list(map(as_json, measured)), "bars": rows}, indent=2))
    else:
        if arguments.quick:
            print("--quick: fewer rows than the shapes have; bars on large shapes are not checked")
        print_table(measured)
        for bar in checked:
            sign = "<=" if bar.most else ">="
            ends = "({:.3f}, {:.3f})".format(*bar.ends) if bar.ends else ""
            verdict = "met" if bar.met else "MISSED"
            print(f"{bar.what:78} {bar.value:9.3f} {sign} {bar.limit:<6g} {verdict:6} {ends}".rstrip())
    if missed := [bar for bar in checked if not bar.met]:
        sys.exit(f"{len(missed)} of {len(checked)} bars missed: " + "; ".join(bar.what for bar in missed))


if __name__ == "__main__":
    main()
