"""Writing files so that a failure never leaves half a file behind."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adabm_basicsr.errors import AdaBMError

TEMPORARY_PREFIX = ".unfinished-"


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` if the block succeeds, removed if it doesn't.

    Raises:
        AdaBMError: Writing failed (disk full, no permission); a previous file at ``path`` is left whole.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{path.suffix}")
        temporary.touch(exist_ok=False)
        if path.exists():
            os.chmod(temporary, path.stat().st_mode)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # some disks tell only now that they are full
        os.replace(temporary, path)
    except OSError as error:
        raise AdaBMError(f"cannot write {path}: {error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: str | os.PathLike) -> None:
    """Remove what a killed process left unfinished in ``folder``."""
    for path in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)
