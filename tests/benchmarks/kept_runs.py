"""Runs of a benchmark whose results are kept, so that a benchmark that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from adabm_basicsr.files import atomic_path


def run_missing(path: Path, runs: Mapping[str, Callable[[], dict]]) -> dict[str, dict]:
    """Run what a file has no results of yet, and keep them there.

    Args:
        path: A JSON file of results by the name of the run; it need not exist.
        runs: Each gives its results.

    Returns:
        All results of the file, those of other runs too.
    """
    results: dict[str, dict] = {}
    if path.is_file():
        results = json.loads(path.read_text())
    for name, run in runs.items():
        if name not in results:
            results[name] = run()
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(results, indent=2))
    return results
