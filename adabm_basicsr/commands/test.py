"""``adabm-basicsr test -opt FILE``: validate a network under BasicSR's test pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from adabm_basicsr.bridge.pipeline import run_pipeline


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; ``argv`` as BasicSR's ``test.py`` takes it."""
    run_pipeline(argv, is_train=False, prog="adabm-basicsr test")
