"""Writes the tables of docs/results.md that the accuracy benchmark measures.

    python docs/generate_results.py [DIR/accuracy.json ...]

Files that ``tests/benchmarks/accuracy.py`` wrote are taken into docs/accuracy.json first. That has
the runs, and of earlier ones, which weren't kept, the means over their seeds. Of the same setting
those with most seeds are shown, of equally many the newest.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests" / "benchmarks"))

from networks import PERCEPTUAL  # noqa: E402
from results import (  # noqa: E402
    Row,
    choose,
    put_table,
    regenerate,
    summarise,
    table_of_comparison,
    table_of_results,
)

RESULTS_PATH = DOCS / "accuracy.json"
PAGE_PATH = DOCS / "results.md"


def render_page(page: str, results: dict) -> str:
    """The page with the tables of these results.

    Args:
        page: The page of before; each table stands between two comments that have its name.
        results: `earlier`, rows of runs that weren't kept, and `runs` by name.
    """
    earlier = [Row(**row) for row in results["earlier"]]
    rows = choose([*earlier, *summarise(results["runs"].values())])
    networks = list(dict.fromkeys(row.network for row in rows))
    rows.sort(key=lambda row: networks.index(row.network))
    perceptual = [row for row in rows if row.network in PERCEPTUAL]
    others = [row for row in rows if row.network not in PERCEPTUAL]
    tables = {
        "accuracy": table_of_results(others),
        "perceptual networks": table_of_results(perceptual),
        "published": table_of_comparison(rows),
    }
    for name, table in tables.items():
        page = put_table(page, name, table)
    return page


def main() -> None:
    """Read what is there, take runs in, and write."""
    regenerate(__doc__, RESULTS_PATH, PAGE_PATH, render_page)


if __name__ == "__main__":
    main()
