"""Errors that name what is wrong and what would be right, in one line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

FEW = 5  # choices that are listed beside the nearest


class AdaBMError(ValueError):
    """A mistake in the user's input. The command line prints it as one line, without a traceback."""


def did_you_mean(value: str, choices: Iterable[str], limit: int = 12) -> str:
    """The end of an error message: the nearest of ``choices`` to ``value``; all if they are few, or none is near."""
    choices = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(value), choices, n=3, cutoff=0.6)
    shown = ", ".join(repr(choice) for choice in choices[:limit])
    valid = (
        f"valid: {shown}{', ...' if len(choices) > limit else ''}" if choices else "there are none"
    )
    if not near:
        return valid
    question = f"did you mean {' or '.join(repr(choice) for choice in near)}?"
    return f"{question} ({valid})" if len(near) < len(choices) <= FEW else question


def first_line(error: Exception, skipped: tuple[str, ...] = ()) -> str:
    """The first line of what an error of other code says, or its name where it says nothing.

    Args:
        error: The error.
        skipped: How lines begin that tell a user nothing.
    """
    return next(
        (line for line in str(error).strip().splitlines() if not line.startswith(skipped)),
        repr(error),
    )


def not_found(what: str, path: str | Path) -> AdaBMError:
    """The error for a path that isn't ``what`` it should be: of the other kind, or absent, with names like its own."""
    if os.path.exists(path):
        kind = "a folder, not a file" if os.path.isdir(path) else "a file, not a folder"
        return AdaBMError(f"{what} {path} is {kind}".strip())
    return AdaBMError(f"{what} {path} does not exist{near_paths(path)}".strip())


def near_paths(path: str | Path) -> str:
    """The end of an error message: files and folders beside ``path`` whose names are like its own; may be empty."""
    folder = Path(path).parent
    near = difflib.get_close_matches(
        Path(path).name, os.listdir(folder) if folder.is_dir() else (), n=3
    )
    return (
        f"; did you mean {' or '.join(repr(str(folder / name)) for name in near)}?" if near else ""
    )


def check_keys(where: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise `AdaBMError` for the first of the ``given`` keys that is not ``valid``; ``where`` names the section."""
    valid = list(valid)
    for key in given:
        if key not in valid:
            raise AdaBMError(f"{where}: unknown key {key!r}; {did_you_mean(key, valid)}")


def check_positive(where: str, value: object) -> int:
    """``value`` if it is a positive whole number, else `AdaBMError`; ``where`` names the option."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise AdaBMError(f"{where}: {value!r} is not a positive whole number")
    return value
