# SPDX-License-Identifier: Apache-2.0
"""The pictures: time and memory over the vocabulary's size, ours and peers', and how time grows.

They need the extra [plot].
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import growth
from results import Results

from npu_ce_jit.bench import implementations as who
from npu_ce_jit.bench.cases import LIMIT, STEP

Lines = dict[str, list[tuple[int, float]]]
# A loss has one look in every picture: ours are blue and solid, peers red, orange or purple, the limit (a copy of the
# logits) grey. The colours differ in lightness too, for readers who do not tell them apart by hue.
_LOOKS: dict[str, dict[str, Any]] = {
    who.CROSS_ENTROPY: {"color": "#08519c", "marker": "o", "linewidth": 2.4},
    who.IN_PLACE: {"color": "#2b8cbe", "marker": "v", "linewidth": 2.4},
    who.DROP_IN: {"color": "#41b6c4", "marker": "s", "linewidth": 1.8},
    who.LINEAR: {"color": "#08519c", "marker": "o", "linewidth": 2.4},
    who.LINEAR + who.FOR_MEMORY: {"color": "#2b8cbe", "marker": "v", "linewidth": 1.8},
    who.EAGER: {"color": "#d7301f", "marker": "x", "linewidth": 1.5},
    who.COMPILED: {"color": "#fc8d59", "marker": "+", "linewidth": 1.5},
    who.LINEAR_EAGER: {"color": "#d7301f", "marker": "x", "linewidth": 1.5},
    who.LINEAR_TORCH: {"color": "#9e3d9b", "marker": "d", "linewidth": 1.5},
    who.LINEAR_TORCH + who.FOR_MEMORY: {"color": "#c994c7", "marker": "d", "linewidth": 1.5},
    who.APPLE: {"color": "#fc8d59", "marker": "+", "linewidth": 1.5},
    LIMIT: {"color": "#737373", "linestyle": "--", "linewidth": 1.2},
}
_FROM_LOGITS = (who.CROSS_ENTROPY, who.IN_PLACE, who.DROP_IN, who.EAGER, who.COMPILED)
_FROM_HIDDEN = (who.LINEAR, who.LINEAR_EAGER, who.LINEAR_TORCH, who.APPLE)
_INCHES = (10.5, 4.2)
_DOTS = 130  # an inch


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Writes the pictures. Returns the names of those that it cannot draw, with the reason."""
    pictures: dict[str, Callable[[Any, Results], Any]] = {"time": _time, "memory": _memory, "growth": _growth}
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        return dict.fromkeys(pictures, f"{error}; pip install -e '.[plot]' brings it")
    mpl.use("agg")
    import matplotlib.pyplot as plt
    from PIL import Image  # which matplotlib needs

    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "grid.color": "#e5e5e5", "axes.axisbelow": True, "legend.frameon": False}):  # fmt: skip
        for name, picture in pictures.items():
            figure = picture(plt, results)
            drawn = io.BytesIO()
            figure.savefig(drawn, dpi=_DOTS, facecolor="white")
            plt.close(figure)
            # Few colours are enough for lines, and take a third of the bytes.
            Image.open(drawn).convert("RGB").quantize(64).save(folder / f"{name}.png", optimize=True)
    return {}


def _time(plt: Any, results: Results) -> Any:
    return _over_classes(plt, results, "milliseconds", "time of forward + backward [ms]", (LIMIT,))


def _memory(plt: Any, results: Results) -> Any:
    more = (who.LINEAR + who.FOR_MEMORY, who.LINEAR_TORCH + who.FOR_MEMORY)
    return _over_classes(plt, results, "peak bytes", "peak memory above the inputs [MiB]", more)


def _over_classes(plt: Any, results: Results, figure: str, unit: str, more: tuple[str, ...]) -> Any:
    picture, panels = plt.subplots(1, 2, figsize=_INCHES, layout="constrained")
    for panel, loss, names in zip(panels, ("cross_entropy", "linear"), (_FROM_LOGITS, _FROM_HIDDEN), strict=True):
        cells = growth.cells(loss, STEP, "classes")
        drawn = {}
        for name in (*names, *more):
            of = growth.cells("drop-in", STEP, "classes") if name == who.DROP_IN else cells
            drawn[name] = growth.points(results, of, name, figure, "classes")
        _draw_lines(panel, drawn, 2**-20 if figure == "peak bytes" else 1.0)
        of = cells[0]
        source = f"hidden states, {of.rows} x {of.features}" if of.features else f"logits, {of.rows} rows"
        panel.set_title(f"from {source}, float32", loc="left")
        panel.set_xlabel("vocabulary size [classes]")
        panel.set_ylabel(unit)
    return picture


def _growth(plt: Any, results: Results) -> Any:
    picture, panels = plt.subplots(1, 2, figsize=_INCHES, layout="constrained")
    for panel, over in zip(panels, ("classes", "rows"), strict=True):
        cells = growth.cells("cross_entropy", STEP, over)
        drawn = {
            name: growth.points(results, cells, name, "milliseconds", over)
            for name in (who.CROSS_ENTROPY, who.IN_PLACE, LIMIT)
        }
        slopes = {name: growth.slope(line) for name, line in drawn.items()}
        _draw_lines(panel, drawn, 1.0, {name: f"slope {slope:.2f}" for name, slope in slopes.items() if slope})
        fixed = f"{cells[0].rows} rows" if over == "classes" else f"{cells[0].classes} classes"
        panel.set_title(f"{fixed}, float32", loc="left")
        panel.set_xlabel(over)
        panel.set_ylabel("time of forward + backward [ms]")
    return picture


def _draw_lines(panel: Any, lines: Lines, scale: float, more: dict[str, str] | None = None) -> None:
    """Draws lines on logarithmic axes. In place of a legend, each line's end has its name, and its text in `more`."""
    panel.set_xscale("log")
    panel.set_yscale("log")
    ends = []
    for name, points in lines.items():
        if points:
            places, values = zip(*((x, y * scale) for x, y in points), strict=True)
            panel.plot(places, values, markersize=5, **_LOOKS[name])
            ends.append((values[-1], places[-1], name))
    if not ends:
        return
    panel.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
    panel.yaxis.set_major_formatter("{x:,g}")
    panel.autoscale_view()  # else the ends would be placed by the limits of empty axes
    ends.sort()
    heights = panel.transAxes.inverted().transform([panel.transData.transform((x, y)) for y, x, _ in ends])[:, 1]
    for (value, x, name), height in zip(ends, _apart(list(heights), 0.06), strict=True):
        panel.annotate(
            ", ".join([name, *([more[name]] if more and name in more else [])]), (x, value), (1.02, height),
            textcoords="axes fraction", va="center", color=_LOOKS[name]["color"], fontsize=9, annotation_clip=False,
        )  # fmt: skip


def _apart(heights: list[float], least: float) -> list[float]:
    """The rising heights, each lowered until it is `least` below the next; the highest stays."""
    for index in range(len(heights) - 2, -1, -1):
        heights[index] = min(heights[index], heights[index + 1] - least)
    return heights
