"""Shell-style patterns of layers and modules in option files: ``body.0``, ``*.conv2``."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from adabm_basicsr.errors import OptionError, did_you_mean


def match(key: str, pattern: str, names: list[str], kind: str = "layer") -> list[str]:
    """The ``names`` that match ``pattern`` or lie below a module of that name.

    Args:
        key: The option that the pattern stands in, for the message.
        pattern: With ``*`` and ``?``.
        names: What there is to match.
        kind: What the names are of, for the message.

    Raises:
        OptionError: Nothing matches; the message names the near misses.
    """
    matched = []
    for name in names:
        if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*"):
            matched.append(name)
    if not matched:
        nearest = did_you_mean(pattern, names)
        raise OptionError(f"{key}: pattern {pattern!r} matches no {kind}; {nearest}")
    return matched


def match_all(
    key: str, patterns: Sequence[str], names: list[str], kind: str = "layer"
) -> list[str]:
    """The ``names`` that any of ``patterns`` matches, in their order.

    Raises:
        OptionError: One of the patterns matches nothing.
    """
    matched = set()
    for pattern in patterns:
        matched.update(match(key, pattern, names, kind))
    return [name for name in names if name in matched]
