"""Writes a report: one HTML file that needs nothing else, tables as JSON and Markdown, plots."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adabm_basicsr.files import atomic_path
from adabm_basicsr.report.crops import cut, draw_crops, find_crops
from adabm_basicsr.report.figures import FULL, VARIANTS, gather, own_variant
from adabm_basicsr.report.formats import title
from adabm_basicsr.report.page import write_page
from adabm_basicsr.report.plots import (
    complexity_plot,
    frames_plot,
    histogram_plot,
    layer_plot,
    save_plot,
    tradeoff_plot,
)
from adabm_basicsr.report.tables import Table, all_tables
from adabm_basicsr.runs.pictures import PictureStore
from adabm_basicsr.runs.record import plain, read_record, write_json
from adabm_basicsr.terminal import LOGGER, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "report"
# Costs that are also given as a share of those in full precision, and the names of the shares.
SHARES = {"bitops": "bitops_share", "weight_bytes": "size_share"}


def report_run(folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Write the report of a run from what it recorded and the pictures that there are.

    Args:
        folder: The run's.
        out: Folder for the report; by default ``report`` in the run's.

    Returns:
        The figures, as ``report.json`` has them.

    Raises:
        AdaBMError: There is no record of a run, or a file can't be written.
    """
    start = time.perf_counter()
    out = out or folder / FOLDER
    own = own_variant(read_record(folder))
    store = PictureStore(folder)
    figures = gather(folder)
    add_kept_sets(figures, store, own)
    add_kept_metrics(figures, store)
    add_kept_frames(figures, store, own)
    add_shares(figures)
    figures["crops"] = find_crops(store, list(figures["sets"]), own)
    figures = plain(figures)

    crops = [cut(store, crop, own) for crop in figures["crops"]]
    plots = draw_plots(figures, out)
    if crops:
        draw_crops(crops, _metrics_of_crops(figures), out / "crops.png")
    write_json(out / "report.json", figures)
    write_tables(figures["name"], all_tables(figures), out / "report.md")
    write_page(figures, crops, plots, store, out / "report.html")
    log_tables(figures)
    say(f"Report: {time.perf_counter() - start:.1f} s, {out / 'report.html'}")
    return figures


def add_kept_sets(figures: dict[str, Any], store: PictureStore, own: str) -> None:
    """Add sets that the report alone ran.

    Args:
        figures: Figures of a run; changed in place.
        store: Its pictures.
        own: Which variant its network is.
    """
    for name in store.sets():
        if name in figures["sets"]:
            continue
        facts = store.facts(name, own)
        if facts:
            facts["versions"] = {}
            facts["by_frame"] = {}
            facts["seconds"] = None
            figures["sets"][name] = facts


def add_kept_metrics(figures: dict[str, Any], store: PictureStore) -> None:
    """Add metrics of variants whose pictures are kept; figures of the run itself stay."""
    for name, facts in figures["sets"].items():
        for variant in VARIANTS:
            kept = store.metrics(name, variant)
            if kept is not None:
                of_run = facts["versions"].get(variant, {})
                facts["versions"][variant] = kept | of_run


def add_kept_frames(figures: dict[str, Any], store: PictureStore, own: str) -> None:
    """Add metrics by frame of variants that were run on clips, and which frames are shown."""
    for name, facts in figures["sets"].items():
        facts["frames"] = (store.facts(name, own) or {}).get("frames", [])
        for variant in VARIANTS:
            by_frame = (store.facts(name, variant) or {}).get("by_frame", {})
            of_run = facts["by_frame"].get(variant, {})
            if by_frame or of_run:
                facts["by_frame"][variant] = by_frame | of_run


def add_shares(figures: dict[str, Any]) -> None:
    """Put after each cost its share of that in full precision, where that is known."""
    for facts in figures["sets"].values():
        variants = facts["versions"]
        if FULL not in variants:
            continue
        full = variants[FULL]
        for variant, metrics in variants.items():
            shared = {}
            for name, value in metrics.items():
                shared[name] = value
                if name in SHARES:
                    shared[SHARES[name]] = value / full[name]
            variants[variant] = shared


def _metrics_of_crops(figures: Mapping) -> dict[str, Mapping]:
    """Metrics of each variant on the set that crops are of; none where they are of several."""
    sets = {crop["set"] for crop in figures["crops"]}
    if len(sets) != 1:
        return {}
    return figures["sets"][sets.pop()]["versions"]


def draw_plots(figures: Mapping, out: Path) -> dict[str, Path]:
    """Draw what there are figures for.

    Returns:
        The file of each plot by its name.
    """
    plots: dict[str, Callable[[], Figure]] = {}
    if figures["layers"]:
        layers = sorted(figures["layers"], key=lambda layer: layer["index"])
        layer_bits = {layer["name"]: layer["layer_bits"] for layer in layers}
        weight_bits = {layer["name"]: layer["w_bits"] for layer in layers}
        plots["layers"] = partial(layer_plot, layer_bits, weight_bits)
    complexities = _complexities(figures)
    if complexities:
        plots["complexity"] = partial(complexity_plot, complexities, figures["thresholds"])
    counts = {}
    for name, facts in figures["sets"].items():
        if facts["bit_counts"]:
            counts[name] = facts["bit_counts"]
    if counts:
        plots["histogram"] = partial(histogram_plot, counts)
    by_frame = _by_frame(figures)
    if by_frame:
        plots["frames"] = partial(frames_plot, by_frame)
    points = tradeoff_points(figures)
    if points:
        plots["tradeoff"] = partial(tradeoff_plot, points)

    files = {}
    for name, make in plots.items():
        files[name] = out / f"{name}.png"
        save_plot(make, files[name])
    return files


def _complexities(figures: Mapping) -> dict[str, list[tuple[float, float]]]:
    """``(complexity, bits)`` of each image, by its set."""
    if own_variant(figures) == FULL:
        return {}
    points = {}
    calibration = figures["calibration"]
    if calibration:
        pairs = zip(calibration["complexity"], calibration["bits"], strict=True)
        points["calibration patches"] = list(pairs)
    for name, facts in figures["sets"].items():
        points[name] = []
        for image in facts["images"]:
            points[name].append((image["complexity"], image["bits"]))
    return {name: found for name, found in points.items() if found}


def _by_frame(figures: Mapping) -> dict[str, Mapping[str, Sequence[float]]]:
    """Metrics by frame of each variant on each set of clips, by what the plot calls them."""
    found = {}
    for name, facts in figures["sets"].items():
        for variant in VARIANTS:
            by_frame = facts["by_frame"].get(variant, {})
            # Of some sets a single frame of each clip is judged.
            if any(len(values) > 1 for values in by_frame.values()):
                found[f"{name}, {title(variant)}"] = by_frame
    return found


def tradeoff_points(figures: Mapping) -> list[dict[str, Any]]:
    """PSNR and BitOPs of the runs in the folder, and of this run's other variants."""
    points = []
    for of_run in figures["runs"]:
        point = {"run": of_run["name"], "set": of_run["set"]}
        points.append(point | of_run["metrics"])
    for name, facts in figures.get("sets", {}).items():
        # A variant that a run beside this one is has its point already.
        known = [point["bitops"] for point in points if point["set"] == name]
        for variant, metrics in facts["versions"].items():
            if metrics["bitops"] not in known:
                point = {"run": variant.replace("_", " "), "set": name}
                points.append(point | metrics)
    complete = []
    for point in points:
        if point.get("psnr") is not None and point.get("bitops"):
            complete.append(point)
    return complete


def write_tables(name: str, tables: Mapping[str, Table], path: Path) -> None:
    """Write tables as Markdown, under the ``name`` of what they are of."""
    parts = [f"# {name}\n"]
    for table in tables.values():
        parts.append(f"## {table.name}\n\n{table.text('github')}\n")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def log_tables(figures: Mapping) -> None:
    """Write every table to the log, which then has all figures of the report."""
    parts = [f"{table.name}\n{table.text()}" for table in all_tables(figures).values()]
    tables = "\n\n".join(parts)
    logging.getLogger(LOGGER).info(f"Report of {figures['name']}\n{tables}")


def print_figures(figures: Mapping) -> None:
    """Print figures as JSON on stdout."""
    print(json.dumps(plain(figures), indent=1))
