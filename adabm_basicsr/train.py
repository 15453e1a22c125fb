"""``python -m adabm_basicsr.train`` is ``adabm-basicsr train``, for launchers such as torchrun."""

from __future__ import annotations

from collections.abc import Sequence

from adabm_basicsr.commands import train
from adabm_basicsr.commands.main import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; ``argv`` as BasicSR's ``train.py`` takes it."""
    with one_line_errors():
        train.main(argv)


if __name__ == "__main__":
    main()
