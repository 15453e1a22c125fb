"""Looking for files under any name, and writing them so that a failure never leaves half of one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adabm_basicsr.errors import AdaBMError

TEMPORARY_PREFIX = ".unfinished-"


# For a name that no file can have, such as one of 300 characters, Path.is_file and its like raise.


def exists(path: str | os.PathLike) -> bool:
    """Whether there is anything at ``path``."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is a file at ``path``, or a link to one."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder at ``path``, or a link to one."""
    return os.path.isdir(path)  # noqa: PTH112


def holds_folders(path: str | os.PathLike) -> bool:
    """Whether there is a folder that holds others, hidden ones aside."""
    return any(is_folder(entry) for entry in Path(path).glob("[!.]*"))


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to.

    It is renamed to ``path`` if the block succeeds, and removed if it doesn't. Missing folders are
    made; a file that is replaced keeps its permissions.

    Raises:
        AdaBMError: Writing failed (disk full, no permission); an earlier file at ``path`` is left
            whole.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{path.suffix}")
        temporary.touch(exist_ok=False)
        if path.exists():
            temporary.chmod(path.stat().st_mode)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # some disks report only now that they are full
        temporary.replace(path)
    except OSError as error:
        raise AdaBMError(f"cannot write {path}: {error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: str | os.PathLike) -> None:
    """Remove what a killed process left unfinished in ``folder``."""
    for path in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)
