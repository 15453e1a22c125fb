"""``adabm-basicsr train -opt FILE``: quantize a network under BasicSR's training pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from adabm_basicsr.bridge.pipeline import run_pipeline


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; ``argv`` as BasicSR's ``train.py`` takes it."""
    run_pipeline(argv, is_train=True, prog="adabm-basicsr train")
