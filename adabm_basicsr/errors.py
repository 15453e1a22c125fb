"""Errors that name what is wrong and what would be right, in one line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

FEW = 5  # choices that are listed beside the nearest
MAX_COUNT = 2**31 - 1


class AdaBMError(ValueError):
    """A mistake in the user's input: one line, which the commands print without a traceback.

    Subclasses in ``adabm_basicsr.errors`` say what the mistake is in.
    """


class OptionError(AdaBMError):
    """An option, an argument or a flag is missing, unknown or out of range."""


class NotRegisteredError(OptionError):
    """An option names an architecture, model, dataset or metric that nothing has registered."""


class ImageError(AdaBMError):
    """An image, a list of images or an LMDB is missing, broken or of a kind that isn't read."""


class CheckpointError(AdaBMError):
    """The file of a network is missing or damaged, or doesn't fit the network."""


class ExportError(AdaBMError):
    """A network can't be exported, or a runtime is not installed or can't run it."""


def did_you_mean(value: object, choices: Iterable[object], limit: int = 12) -> str:
    """The end of an error message: which of ``choices`` are nearest to ``value``.

    All of them are listed if they are few, or if none is near.

    Args:
        value: What was given.
        choices: What would be valid.
        limit: How many choices are listed at most.
    """
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.6)
    if not near:
        return _listed(names, limit)
    question = _question(near)
    if len(near) < len(names) <= FEW:
        return f"{question} ({_listed(names, limit)})"
    return question


def _listed(names: Sequence[str], limit: int) -> str:
    if not names:
        return "there are none"
    shown = [repr(name) for name in names[:limit]]
    if len(names) > limit:
        shown.append("...")
    return f"valid: {', '.join(shown)}"


def _question(near: Sequence[str]) -> str:
    quoted = [repr(name) for name in near]
    return f"did you mean {' or '.join(quoted)}?"


def first_line(error: Exception, skipped: tuple[str, ...] = ()) -> str:
    """The first line of the message of an error of other code, or its name if it has none.

    Args:
        error: The error.
        skipped: How lines begin that don't help a user.
    """
    for line in str(error).strip().splitlines():
        if not line.startswith(skipped):
            return line
    return repr(error)


@contextmanager
def within(section: str) -> Iterator[None]:
    """Context in which errors of options name the section that they stand in, if they don't.

    Args:
        section: Its name in option files.
    """
    try:
        yield
    except OptionError as error:
        if str(error).startswith(f"{section}:"):
            raise
        raise type(error)(f"{section}: {error}") from error


def counted(number: int, things: str) -> str:
    """A number of things as messages say it: ``1 frame``, ``2 frames``.

    Args:
        number: How many there are.
        things: What they are, in the plural.
    """
    if number == 1:
        things = things.removesuffix("s")
    return f"{number} {things}"


def one_line(error: Exception) -> str:
    """The message of an error in one line, as names in files may hold any characters."""
    return " ".join(str(error).split())


def not_found(
    what: str, path: str | os.PathLike, kind: type[AdaBMError] = AdaBMError
) -> AdaBMError:
    """The error for a path that is absent, or a folder in place of a file or the other way round.

    Args:
        what: What the path should be, for the message; may be empty.
        path: The path. If there is nothing there, the message names paths that are spelt alike.
        kind: Class of the error.
    """
    why = why_link_is_broken(path)
    if why:
        return kind(f"{what} {path} {why}".strip())
    # Path.exists and its like raise for names that no file can have.
    if not os.path.exists(path):  # noqa: PTH110
        return kind(f"{what} {path} does not exist{near_paths(path)}".strip())
    if os.path.isdir(path):  # noqa: PTH112
        return kind(f"{what} {path} is a folder, not a file".strip())
    return kind(f"{what} {path} is a file, not a folder".strip())


def why_link_is_broken(path: str | os.PathLike) -> str:
    """What is wrong with a link that leads to no file; empty for what isn't such a link."""
    is_broken = os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114
    if not is_broken:
        return ""
    target = Path(path).readlink()
    # Where it ends; in a circle there are links all along.
    end = os.path.realpath(path)
    if os.path.islink(end):  # noqa: PTH114
        return "is a link that leads back to itself"
    return f"is a link to {target}, which does not exist"


def near_paths(path: str | os.PathLike) -> str:
    """The end of an error message: what is spelt like ``path`` in its folder; may be empty."""
    folder = Path(path).parent
    if not os.path.isdir(folder):  # noqa: PTH112
        return ""
    names = [beside.name for beside in folder.iterdir()]
    near = difflib.get_close_matches(Path(path).name, names, n=3)
    if not near:
        return ""
    return f"; {_question([str(folder / name) for name in near])}"


def check_keys(where: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Check the keys of a section.

    Args:
        where: The section, for the message.
        given: Its keys.
        valid: What they may be.

    Raises:
        OptionError: One of them isn't valid.
    """
    valid = list(valid)
    for key in given:
        if key not in valid:
            raise OptionError(f"{where}: unknown key {key!r}; {did_you_mean(key, valid)}")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether ``value`` is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive(where: str, value: object) -> int:
    """Check a count, which is returned; ``where`` names the option.

    Raises:
        OptionError: It is not a positive whole number, or far too large.
    """
    if not is_whole(value) or value < 1:
        raise OptionError(f"{where}: {value!r} is not a positive whole number")
    if value > MAX_COUNT:
        raise OptionError(f"{where}: {value!r} is out of range; valid: 1 to {MAX_COUNT}")
    return value


def check_range(where: str, value: object, low: int, high: int) -> int:
    """Check a whole number from ``low`` to ``high``, which is returned; ``where`` names the option.

    Raises:
        OptionError: It is something else.
    """
    if not is_whole(value) or not low <= value <= high:
        raise OptionError(f"{where}: {value!r} is out of range; valid: {low} to {high}")
    return value
