"""``python -m adabm_basicsr.test`` is ``adabm-basicsr test``, for launchers such as torchrun."""

from __future__ import annotations

from collections.abc import Sequence

from adabm_basicsr.commands import test
from adabm_basicsr.commands.main import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; ``argv`` as BasicSR's ``test.py`` takes it."""
    with one_line_errors():
        test.main(argv)


if __name__ == "__main__":
    main()
