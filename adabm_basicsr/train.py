"""``python -m adabm_basicsr.train -opt FILE``: quantize a network under BasicSR's training pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from adabm_basicsr.bridge.pipeline import run_pipeline
from adabm_basicsr.commands.main import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; ``argv`` as in BasicSR's ``train.py``."""
    with one_line_errors():
        run_pipeline(argv, is_train=True, prog="adabm-basicsr train")


if __name__ == "__main__":
    main()
