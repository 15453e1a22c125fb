"""Writing files so that a failure never leaves half a file behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adabm_basicsr.errors import AdaBMError

TEMPORARY_PREFIX = ".unfinished-"
UMASK = os.umask(0o077)  # it can't be read otherwise
os.umask(UMASK)


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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY_PREFIX, suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # some disks tell only now that they are full
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o666 & ~UMASK)
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
