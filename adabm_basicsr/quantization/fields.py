"""Fields of dataclasses that are options, with what the table of options shows of them."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(description: str, default: Any = None, **facts: Any) -> Any:
    """A field of a dataclass that a user sets.

    Args:
        description: What it does, in a sentence or two.
        default: Its value where the user gives none.
        **facts: What else is known of its values: ``choices``, ``minimum``, ``maximum``,
            ``keys`` of a mapping, ``valid`` in words.
    """
    metadata = {"description": description, **facts}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)
