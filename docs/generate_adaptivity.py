"""Writes the table of docs/adaptivity.md that the benchmark of adaptivity measures.

    python docs/generate_adaptivity.py [DIR/adaptivity.json ...]

Files that ``tests/benchmarks/adaptivity.py`` wrote are taken into docs/adaptivity.json first.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests" / "benchmarks"))

from adaptivity import table_of_choices  # noqa: E402
from results import put_table, regenerate  # noqa: E402

RESULTS_PATH = DOCS / "adaptivity.json"
PAGE_PATH = DOCS / "adaptivity.md"


def render_page(page: str, results: dict) -> str:
    """The page with the table of these results, which have `runs` by name."""
    return put_table(page, "adaptivity", table_of_choices(results["runs"].values()))


def main() -> None:
    """Read what is there, take runs in, and write."""
    regenerate(__doc__, RESULTS_PATH, PAGE_PATH, render_page)


if __name__ == "__main__":
    main()
