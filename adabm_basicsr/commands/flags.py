"""What the flags of several commands share; ``--quiet`` and ``--json`` stand in `terminal`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from adabm_basicsr.commands.main import COMMANDS
from adabm_basicsr.errors import OptionError, did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `OptionError`: one line, with the nearest flag."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """What the flags say.

        Raises:
            OptionError: A flag is unknown or missing, or has no value of its kind.
        """
        args = list(sys.argv[1:] if args is None else args)
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in args:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                raise OptionError(f"unknown flag {flag}; {did_you_mean(flag, known)}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise it rather than print the usage and exit."""
        raise OptionError(f"{message}; see {self.prog} --help")


def make_parser(command: str) -> Parser:
    """A parser without flags yet for one of `COMMANDS`; flags can't be abbreviated."""
    return Parser(
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
