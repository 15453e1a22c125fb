"""Writes a report: one HTML file that needs nothing else, its tables as JSON and Markdown, its plots as PNG."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adabm_basicsr.files import atomic_path
from adabm_basicsr.report.crops import cut, draw_crops, find_crops
from adabm_basicsr.report.figures import FULL, VERSIONS, gather, own_version
from adabm_basicsr.report.page import write_page
from adabm_basicsr.report.plots import (
    complexity_plot,
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
SHARES = {"bitops": "bitops_share", "weight_bytes": "size_share"}


def report_run(folder: Path, out: Path | None = None) -> dict:
    """Write the report of a run from what it noted and the pictures that there are.

    Args:
        folder: The run's.
        out: Folder for the report; by default ``report`` in the run's.

    Returns:
        The figures, as ``report.json`` has them.

    Raises:
        AdaBMError: There is no record of a run, or a file can't be written.
    """
    start, out = time.perf_counter(), out or folder / FOLDER
    record, figures, store = read_record(folder), gather(folder), PictureStore(folder)
    own = own_version(record)
    add_versions(figures, store, own)
    figures["crops"] = find_crops(store, list(figures["sets"]), own)
    figures = plain(figures)
    rows = [cut(store, crop, own) for crop in figures["crops"]]
    plots = draw_plots(figures, out)
    if rows:
        of_sets = {crop["set"] for crop in figures["crops"]}
        shown = figures["sets"][of_sets.pop()]["versions"] if len(of_sets) == 1 else {}
        draw_crops(rows, shown, out / "crops.png")
    write_json(out / "report.json", figures)
    write_tables(figures["name"], all_tables(figures), out / "report.md")
    write_page(figures, rows, plots, store, out / "report.html")
    log_tables(figures)
    say(f"Report: {time.perf_counter() - start:.1f} s, {out / 'report.html'}")
    return figures


def add_versions(figures: dict, store: PictureStore, own: str) -> None:
    """Add sets that the report alone ran, metrics of versions whose pictures are kept, and shares of full precision.

    Args:
        figures: Figures of a run; changed in place.
        store: Its pictures.
        own: Which version its network is.
    """
    for name in store.sets():
        if name not in figures["sets"] and (facts := store.facts(name, own)):
            figures["sets"][name] = {"versions": {}, **facts, "seconds": None}
    for name, facts in figures["sets"].items():
        for version in VERSIONS:
            kept = store.metrics(name, version)
            if kept is not None:
                facts["versions"][version] = {
                    **kept,
                    **facts["versions"].get(version, {}),
                }  # the run's own stay
        full = facts["versions"].get(FULL)
        for version, metrics in facts["versions"].items() if full else ():
            facts["versions"][version] = _with_shares(metrics, full)


def _with_shares(metrics: Mapping, full: Mapping) -> dict:
    """Metrics with each cost's share of that in full precision after it."""
    shared = {}
    for name, value in metrics.items():
        shared[name] = value
        if name in SHARES:
            shared[SHARES[name]] = value / full[name]
    return shared


def draw_plots(figures: Mapping, out: Path) -> dict[str, Path]:
    """Draw what there are figures for; returns the file of each plot by its name."""
    made: dict[str, Callable[[], Figure]] = {}
    if layers := sorted(figures["layers"], key=lambda layer: layer["index"]):
        bits = ({layer["name"]: layer[key] for layer in layers} for key in ("layer_bits", "w_bits"))
        made["layers"] = partial(layer_plot, *bits)
    points = _complexities(figures)
    if points:
        made["complexity"] = partial(complexity_plot, points, figures["thresholds"])
    counts = {
        name: facts["bit_counts"] for name, facts in figures["sets"].items() if facts["bit_counts"]
    }
    if counts:
        made["histogram"] = partial(histogram_plot, counts)
    if spread := tradeoff_points(figures):
        made["tradeoff"] = partial(tradeoff_plot, spread)
    files = {name: out / f"{name}.png" for name in made}
    for name, make in made.items():
        save_plot(make, files[name])
    return files


def _complexities(figures: Mapping) -> dict[str, list[tuple[float, float]]]:
    if own_version(figures) == FULL:
        return {}
    found = figures["calibration"]
    points = {"calibration patches": list(zip(found["complexity"], found["bits"]))} if found else {}
    for name, facts in figures["sets"].items():
        points[name] = [(image["complexity"], image["bits"]) for image in facts["images"]]
    return {name: found for name, found in points.items() if found}


def tradeoff_points(figures: Mapping) -> list[dict]:
    """PSNR and BitOPs of the runs in the folder, and of this run's other versions."""
    points = [{"run": p["name"], "set": p["set"], **p["metrics"]} for p in figures["runs"]]
    for name, facts in figures.get("sets", {}).items():
        others = {
            version: m
            for version, m in facts["versions"].items()
            if m["bitops"] not in _bitops(points, name)
        }
        points += [
            {"run": version.replace("_", " "), "set": name, **m} for version, m in others.items()
        ]
    return [point for point in points if point.get("psnr") is not None and point.get("bitops")]


def _bitops(points: list[dict], name: str) -> list[float]:
    return [point["bitops"] for point in points if point["set"] == name]


def write_tables(name: str, tables: Mapping[str, Table], path: Path) -> None:
    """Write tables as Markdown, under the ``name`` of what they are of."""
    parts = [
        f"# {name}\n",
        *(f"## {table.name}\n\n{table.text('github')}\n" for table in tables.values()),
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def log_tables(figures: Mapping) -> None:
    """Write every table to the log, which then has all figures of the report."""
    tables = "\n\n".join(f"{table.name}\n{table.text()}" for table in all_tables(figures).values())
    logging.getLogger(LOGGER).info(f"Report of {figures['name']}\n{tables}")


def print_figures(figures: Mapping) -> None:
    """Print figures as JSON on stdout."""
    print(json.dumps(plain(figures), indent=1))
