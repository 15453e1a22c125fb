"""The plots of a report, each as a figure of matplotlib; small enough to be read on a phone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.report.formats import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (5.0, 3.1)  # inches: on a phone an inch is about 70 pixels
DPI = 160
MARGINS = {"left": 0.15, "right": 0.97, "top": 0.87, "bottom": 0.17}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    # Names may hold dollars.
    "text.parse_math": False,
}
LEGEND: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "frameon": False,
    "fontsize": 8.5,
    "handletextpad": 0.4,
    "columnspacing": 1.0,
    "borderpad": 0.1,
}
LEGEND_WIDTH = 60  # characters that fit beside one another
HANDLE_WIDTH = 6  # of them for the mark and the space around it
MAX_COLUMNS = 4
ROW_HEIGHT = 0.06  # of a legend, as a share of the figure's height
COLOURS = ("#3b82c4", "#e08a2e", "#3f9e63", "#b255a6", "#c0504d", "#7a7f87")
COLOUR_MAP = "viridis"
MIN_SPAN = 0.2  # dB along the axis: smaller differences are not to look large
NEAR = (0.16, 0.06)  # shares of the axes within which labels would run into one another
QUALITIES = ("psnr", "self_psnr")  # of which the first that is known is drawn by frame
MAX_NAMES = 3  # in one label


def _figure(height: float = 1.0) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0], SIZE[1] * height))
    # The layout engines draw everything twice.
    figure.subplots_adjust(**MARGINS)
    return figure, figure.subplots()


def layer_plot(
    layer_bits: Mapping[str, float], weight_bits: Mapping[str, float] | None = None
) -> Figure:
    """Bits along the network: base and layer factor together, and those of the weights."""
    figure, axes = _figure()
    places = np.arange(len(layer_bits)) + 1
    axes.bar(
        places,
        list(layer_bits.values()),
        width=0.8,
        color=COLOURS[0],
        label="input: base bits + layer factor",
    )
    if weight_bits:
        axes.plot(
            places,
            list(weight_bits.values()),
            ".",
            color=COLOURS[1],
            label="weight",
        )
    axes.set(
        xlabel="layer, in execution order",
        ylabel="bits",
        ylim=(0, 8.5),
        yticks=range(0, 9, 2),
    )
    _add_legend(axes)
    return figure


def complexity_plot(
    points: Mapping[str, Sequence[tuple[float, float]]], thresholds: Sequence[float] | None
) -> Figure:
    """Bits used against complexity of images.

    Args:
        points: ``(complexity, bits)`` of each image, by the set that it is of.
        thresholds: Of the image classes; one of 0, which no image is below, isn't drawn.
    """
    figure, axes = _figure()
    for name, colour in _coloured(points):
        complexities = [complexity for complexity, _ in points[name]]
        bits = [used for _, used in points[name]]
        axes.plot(
            complexities,
            bits,
            "o",
            markersize=4,
            markeredgewidth=0,
            alpha=0.6,
            color=colour,
            label=name,
        )
    label: str | None = "thresholds"
    for threshold in thresholds or ():
        if threshold <= 0:
            continue
        axes.axvline(
            threshold,
            linestyle="--",
            linewidth=1.2,
            color=COLOURS[5],
            label=label,
        )
        # Once in the legend.
        label = None
    axes.set(xlabel="complexity of the image", ylabel="bits used (mean)")
    axes.margins(y=0.25)
    _add_legend(axes)
    return figure


def histogram_plot(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """How often a layer used a number of bits on an image, by set: ``{set: {bits: count}}``."""
    figure, axes = _figure()
    used: set[int] = set()
    for found in counts.values():
        used.update(int(bits) for bits in found)
    bits = sorted(used)
    width = 0.8 / max(len(counts), 1)
    for index, (name, colour) in enumerate(_coloured(counts)):
        found = counts[name]
        total = sum(found.values())
        shares = [100 * found.get(str(number), 0) / total for number in bits]
        offset = (index - (len(counts) - 1) / 2) * width
        axes.bar(
            np.array(bits) + offset,
            shares,
            width=width * 0.95,
            color=colour,
            label=name,
        )
    axes.set(
        xlabel="bits used by a layer that counts in FAB, on an image",
        ylabel="share (%)",
        xticks=bits,
    )
    _add_legend(axes)
    return figure


def frames_plot(by_frame: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Quality and bits over the frames of clips, first to last.

    Args:
        by_frame: Metrics and maybe ``fab`` of the first, second, ... frames, by what was run on
            what.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(SIZE[0], 1.4 * SIZE[1]))
    figure.subplots_adjust(**MARGINS)
    quality, bits = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for (name, found), (_, colour) in zip(by_frame.items(), _coloured(by_frame), strict=True):
        for metric in QUALITIES:
            if metric in found:
                quality.plot(found[metric], color=colour, label=name)
                quality.set_ylabel(title(metric))
                break
        # Records of early versions hold metrics by frame, but no bits.
        used = found.get("fab", [FLOAT_BITS])
        if used[0] < FLOAT_BITS:
            bits.plot(used, color=colour)
    bits.set(xlabel="frame of the clip", ylabel="bits used")
    bits.xaxis.set_major_locator(MaxNLocator(integer=True))
    bits.margins(y=0.25)
    _add_legend(quality)
    return figure


def tradeoff_plot(points: Sequence[Mapping]) -> Figure:
    """PSNR against BitOPs, a point for each run and set: ``run``, ``set``, ``psnr``, ``bitops``."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = _figure(height=1.15)
    names = dict.fromkeys(point["set"] for point in points)
    for name, colour in _coloured(names):
        own = [point for point in points if point["set"] == name]
        costs = [point["bitops"] / 1e9 for point in own]
        quality = [point["psnr"] for point in own]
        axes.plot(costs, quality, "o", ms=6, color=colour, label=name)
    axes.set(xlabel="GigaBitOPs per image", ylabel="PSNR (dB)", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.2)
    limits = axes.get_ylim()
    middle = mean(limits)
    half = max(np.ptp(limits) / 2, MIN_SPAN / 2)
    axes.set_ylim(middle - half, middle + half)
    _name_points(axes, points)
    _add_legend(axes)
    return figure


def settings_plot(settings: Sequence[Mapping], curves: Mapping[str, str]) -> Figure:
    """Estimated self-PSNR against BitOPs, with the knee of each curve.

    Args:
        settings: ``curve``, ``bitops_share``, ``self_psnr``, ``w_bits``, ``knee`` of each point.
        curves: What the bits of activations are, by the name of the curve.
    """
    figure, axes = _figure(height=1.15)
    # Labels of the first curve below it, which is the lower one; in points.
    offsets = dict.fromkeys(curves, 6)
    offsets[next(iter(curves))] = -12
    for name, colour in _coloured(curves):
        own = [setting for setting in settings if setting["curve"] == name]
        if not own:
            continue
        costs = [100 * setting["bitops_share"] for setting in own]
        quality = [setting["self_psnr"] for setting in own]
        axes.plot(costs, quality, "o-", ms=4, color=colour, label=curves[name])
        for cost, setting in zip(costs, own, strict=True):
            label = f"{setting['w_bits']}"
            if setting["knee"]:
                label += " (knee)"
                axes.plot(cost, setting["self_psnr"], "o", ms=9, color=colour)
            axes.annotate(
                label,
                (cost, setting["self_psnr"]),
                (0, offsets[name]),
                textcoords="offset points",
                fontsize=8,
                ha="right",
            )
    axes.set(xlabel="BitOPs (% of full precision); bits of weights beside points")
    axes.set(ylabel="self-PSNR (dB)")
    axes.margins(0.12)
    _add_legend(axes)
    return figure


def error_plot(shares: Mapping[str, float]) -> Figure:
    """Share of the error by layer, along the network."""
    figure, axes = _figure()
    places = np.arange(len(shares)) + 1
    axes.bar(places, [100 * share for share in shares.values()], width=0.8, color=COLOURS[0])
    axes.set(xlabel="layer, in execution order", ylabel="share of the error (%)")
    return figure


def _add_legend(axes: Axes) -> None:
    """Put a legend above the axes, with as many columns as fit and room for its rows."""
    _, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), MAX_COLUMNS)
    while columns > 1 and _legend_width(labels, columns) > LEGEND_WIDTH:
        columns -= 1
    rows = math.ceil(len(labels) / columns)
    axes.figure.subplots_adjust(top=MARGINS["top"] - ROW_HEIGHT * (rows - 1))
    axes.legend(ncols=columns, **LEGEND)


def _legend_width(labels: Sequence[str], columns: int) -> int:
    """Characters across a legend; matplotlib fills one column after the other."""
    width = 0
    for column in np.array_split(labels, columns):
        width += max(len(label) for label in column) + HANDLE_WIDTH
    return width


def _coloured(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Each name with a colour; colours begin anew after the last."""
    return zip(names, cycle(COLOURS), strict=False)


def _name_points(axes: Axes, points: Sequence[Mapping]) -> None:
    """Write the names of runs over their points; those that lie together share a label."""
    to_axes = axes.transAxes.inverted()
    together: dict[tuple[int, int], list[Mapping]] = {}
    for point in points:
        on_screen = axes.transData.transform((point["bitops"] / 1e9, point["psnr"]))
        x, y = to_axes.transform(on_screen)
        place = (round(x / NEAR[0]), round(y / NEAR[1]))
        together.setdefault(place, []).append(point)
    for found in together.values():
        names = list(dict.fromkeys(point["run"] for point in found))
        lines = names[:MAX_NAMES]
        if len(names) > MAX_NAMES:
            lines.append(f"and {len(names) - MAX_NAMES} more")
        x = mean(point["bitops"] for point in found) / 1e9
        y = max(point["psnr"] for point in found)
        axes.annotate(
            "\n".join(lines),
            (x, y),
            (0, 6),
            textcoords="offset points",
            fontsize=8,
            ha="center",
        )


def map_colours(values: Sequence[Sequence[float]], scale: int = 1) -> np.ndarray:
    """A map as a picture, coloured from its least to its greatest value.

    Args:
        values: By row and column.
        scale: Pixels along a side of each value.

    Returns:
        ``(rows * scale, columns * scale, 3)`` uint8 RGB.
    """
    from matplotlib import colormaps

    grid = np.array(values)
    span = grid.max() - grid.min()
    shares = np.full_like(grid, 0.5)
    if span:
        shares = (grid - grid.min()) / span
    colours = colormaps[COLOUR_MAP](shares)[..., :3]
    pixels = (colours * 255).round().astype(np.uint8)
    return pixels.repeat(scale, 0).repeat(scale, 1)


def save_plot(make: Callable[[], Figure], path: Path) -> None:
    """Draw a plot and write it as PNG, atomically."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # In a run's name; the page writes it in full.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = make()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=DPI)
