"""Writes the table of docs/adaptivity.md that the benchmark of adaptivity measures.

    python docs/generate_adaptivity.py [DIR/adaptivity.json ...]

Files that ``tests/benchmarks/adaptivity.py`` wrote are taken into docs/adaptivity.json first.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from adabm_basicsr.files import atomic_path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests" / "benchmarks"))

from adaptivity import table_of_choices  # noqa: E402
from results import put_table  # noqa: E402

RESULTS_PATH = DOCS / "adaptivity.json"
PAGE_PATH = DOCS / "adaptivity.md"


def render_page(page: str, results: dict) -> str:
    """The page with the table of these runs, by name."""
    return put_table(page, "adaptivity", table_of_choices(results.values()))


def main() -> None:
    """Read what is there, take runs in, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="results of adaptivity.py")
    args = parser.parse_args()
    results = json.loads(RESULTS_PATH.read_text(encoding="utf-8"))
    for path in args.files:
        results.update(json.loads(path.read_text(encoding="utf-8")))
    page = render_page(PAGE_PATH.read_text(encoding="utf-8"), results)
    with atomic_path(RESULTS_PATH) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with atomic_path(PAGE_PATH) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
