"""What a run shows on the console: bars where there is a terminal, a line per phase, warnings."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from tqdm import tqdm

from adabm_basicsr.quantization.progress import shown_by

LOGGER = "basicsr"  # BasicSR's own, which writes the run's file too
SHOWN = {"console": True}  # marks the records of `say`
# A warning of BasicSR's that isn't true of our model.
UNTRUE = "Multiple validation datasets are *only* supported by SRModel."


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags ``--quiet`` and ``--json``.

    They stand here, below the commands, because BasicSR's pipelines take them too.
    """
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors alone")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in the end")


@contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """Within this context nothing else comes to stdout, if JSON is ``wanted`` there.

    What others print, such as BasicSR's registry, goes to stderr.
    """
    if not wanted:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def printable(text: str) -> str:
    """``text`` in one line, with escapes instead of what a terminal would act on."""
    characters = []
    for character in text:
        if character.isprintable():
            characters.append(character)
        else:
            characters.append(character.encode("unicode_escape").decode())
    return "".join(characters)


def say(line: str) -> None:
    """Log a line that the console shows too."""
    logging.getLogger(LOGGER).info(line, extra=SHOWN)


def make_bar(description: str, total: int) -> tqdm:
    """A progress bar with the time left, on stderr; nothing where that is no terminal."""
    return tqdm(total=total, desc=description, disable=None, leave=False, dynamic_ncols=True)


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Within this context the steps of the method move bars, if they are to be ``shown``."""
    if not shown:
        yield
        return
    with shown_by(make_bar):
        yield


class ConsoleHandler(logging.Handler):
    """Shows the lines of `say` and warnings, above the bars; the run's file has all the rest.

    Args:
        quiet: Whether to show warnings alone.
    """

    def __init__(self, quiet: bool = False) -> None:
        super().__init__()
        self.quiet = quiet

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record to stderr."""
        said = getattr(record, "console", False) and not self.quiet
        warns = record.levelno >= logging.WARNING and record.getMessage() != UNTRUE
        if said or warns:
            tqdm.write(self.format(record), file=sys.stderr)


def with_console(
    get_root_logger: Callable[..., logging.Logger], quiet: bool, note: str = ""
) -> Callable[..., logging.Logger]:
    """BasicSR's ``get_root_logger`` with a `ConsoleHandler` in its log.

    It takes the place of the handler that repeats the whole log. A ``note`` is the first line that
    it shows.
    """

    def wrapped(*args: Any, **kwargs: Any) -> logging.Logger:
        logger = get_root_logger(*args, **kwargs)
        for handler in list(logger.handlers):
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
                logger.addHandler(ConsoleHandler(quiet))
                if note:
                    say(note)
        return logger

    return wrapped
