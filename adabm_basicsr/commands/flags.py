"""What the flags of several commands share; ``--quiet`` and ``--json`` stand in `terminal`."""

from __future__ import annotations

import argparse

from adabm_basicsr.commands.main import COMMANDS


def make_parser(command: str) -> argparse.ArgumentParser:
    """A parser without flags yet for one of `COMMANDS`; flags can't be abbreviated."""
    return argparse.ArgumentParser(
        prog=f"adabm-basicsr {command}",
        description=COMMANDS[command].help,
        allow_abbrev=False,
    )


def add_custom_imports(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names modules of in-house architectures."""
    parser.add_argument(
        "--custom-imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules that register an in-house architecture; this runs their code",
    )


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add the flag that lets larger images in."""
    # Imports BasicSR, for which commands without this flag needn't wait.
    from adabm_basicsr.data.headers import MAX_PIXELS

    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="reject images of more pixels, which may be made to fill the memory "
        "(default: %(default)s)",
    )
