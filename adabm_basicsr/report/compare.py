"""``adabm-basicsr compare``: runs side by side."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.report.build import print_figures, tradeoff_points, write_tables
from adabm_basicsr.report.figures import run_points
from adabm_basicsr.report.page import write_comparison
from adabm_basicsr.report.plots import save_plot, tradeoff_plot
from adabm_basicsr.report.tables import runs_table
from adabm_basicsr.runs.record import FILE, plain, write_json
from adabm_basicsr.terminal import add_output_flags


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr compare``."""
    args = _parse(argv)
    figures = plain({"name": "Comparison", "runs": run_points(find_runs(args.folders))})
    if not figures["runs"]:
        raise AdaBMError(
            "none of these runs validated a set: give the option file of train a val, or run test"
        )
    if args.out:
        write(figures, args.out)
    if args.json:
        print_figures(figures)
    elif not args.quiet:
        print(runs_table(figures).text())


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Folders of runs: those given, and in place of one that is none the runs in it.

    Raises:
        AdaBMError: A folder neither is nor holds a run.
    """
    found = []
    for folder in folders:
        runs = (
            [folder]
            if os.path.isfile(folder / FILE)
            else sorted(path.parent for path in folder.glob(f"*/{FILE}"))
        )
        if not runs:
            raise AdaBMError(
                f"{folder} neither is the folder of a run nor holds any: there is no {FILE}"
            )
        found += runs
    return list(dict.fromkeys(found))


def write(figures: dict, out: Path) -> None:
    """Write the comparison as HTML, JSON, Markdown and, where PSNR is known, a plot against BitOPs."""
    table, plots = runs_table(figures), {}
    if points := tradeoff_points(figures):
        plots = {"tradeoff": out / "tradeoff.png"}
        save_plot(partial(tradeoff_plot, points), plots["tradeoff"])
    write_json(out / "compare.json", figures)
    write_tables(figures["name"], {"runs": table}, out / "compare.md")
    write_comparison(figures, {"runs": table}, plots, out / "compare.html")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr compare", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of runs, or folders that hold some",
    )
    parser.add_argument(
        "-o", "--out", type=Path, help="folder to write compare.html, .json, .md and the plot to"
    )
    add_output_flags(parser)
    return parser.parse_args(argv)
