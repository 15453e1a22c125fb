"""Compares runs, a row for each run and set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import is_file
from adabm_basicsr.report.build import tradeoff_points, write_tables
from adabm_basicsr.report.figures import run_points
from adabm_basicsr.report.page import write_tables_page
from adabm_basicsr.report.plots import save_plot, tradeoff_plot
from adabm_basicsr.report.tables import runs_table
from adabm_basicsr.runs.record import FILE, plain, write_json


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """The figures of runs side by side.

    Args:
        folders: See `find_runs`.

    Raises:
        AdaBMError: A folder neither is nor holds a run, or none of the runs validated a set.
    """
    points = run_points(find_runs(folders))
    if not points:
        raise AdaBMError(
            "none of these runs validated a set: give the option file of train a val, or run test"
        )
    return plain({"name": "Comparison", "runs": points})


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Folders of runs: those given, and in place of one that is none the runs in it.

    Raises:
        AdaBMError: A folder neither is nor holds a run.
    """
    found: list[Path] = []
    for folder in folders:
        if is_file(folder / FILE):
            found.append(folder)
            continue
        runs = sorted(record.parent for record in folder.glob(f"*/{FILE}"))
        if not runs:
            raise AdaBMError(
                f"{folder} neither is the folder of a run nor holds any: there is no {FILE}"
            )
        found += runs
    return list(dict.fromkeys(found))


def write(figures: dict[str, Any], out: Path) -> None:
    """Write a comparison as HTML, JSON and Markdown.

    Where PSNR is known, it is plotted against BitOPs.

    Args:
        figures: What `compare` returned.
        out: The folder.
    """
    tables = {"runs": runs_table(figures)}
    plots = {}
    points = tradeoff_points(figures)
    if points:
        plots["tradeoff"] = out / "tradeoff.png"
        save_plot(partial(tradeoff_plot, points), plots["tradeoff"])
    write_json(out / "compare.json", figures)
    write_tables(figures["name"], tables, out / "compare.md")
    write_tables_page(figures, tables, plots, out / "compare.html", "compare.html")
