"""Files and folders that options name.

`os.path` rather than `pathlib`: the latter raises where a name is too long for a path, or where
``~NAME`` is no user, and what is wrong with an option is to be said in its own words.
"""

from __future__ import annotations

import os

from adabm_basicsr.errors import OptionError, not_found


def existing_file(where: str, path: str) -> str:
    """A path with its ``~`` replaced, of a file that exists.

    Args:
        where: What the path is of, for the message: ``path: resume_state: checkpoint``.
        path: As the option file has it.

    Raises:
        OptionError: There is no such file.
    """
    path = os.path.expanduser(path)  # noqa: PTH111
    if not os.path.isfile(path):  # noqa: PTH113
        raise not_found(where, path, OptionError)
    return path


def existing_folder(where: str, path: str) -> str:
    """As `existing_file`, of a folder."""
    path = os.path.expanduser(path)  # noqa: PTH111
    if not os.path.isdir(path):  # noqa: PTH112
        raise not_found(where, path, OptionError)
    return path
