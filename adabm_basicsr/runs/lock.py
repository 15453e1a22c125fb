"""One run at a time in a folder: two of one name would mix their files, and both end well.

Beside the folder lies the lock file ``.NAME.lock``. What counts is the system's own lock on it,
which goes with its process, however that ends. ``.NAME.process`` says which process that is. It is
still there where a process was killed.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.distributed import from_first
from adabm_basicsr.runs.record import command_of, write_json
from adabm_basicsr.terminal import printable

# What file systems answer that know no locks.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
GROUP_WRITES = 0o664  # others of a group may run what one of them ran before

_held: dict[Path, FileLock] = {}  # by this process


def take_folder(opt: Mapping[str, Any]) -> str:
    """Keep other runs out of a run's folder until `leave_folder`, or until the process ends.

    Of several processes of a run, the first does it for all. A folder that this process has taken
    already stays taken.

    Args:
        opt: BasicSR's options of the run.

    Returns:
        What there is to log, in a line; mostly empty.

    Raises:
        AdaBMError: Another run has it, or its place can't be written to.
    """
    note = ""
    refusal = ""
    if opt["rank"] == 0:
        folder = Path(opt["path"]["log"])
        try:
            note = _take(folder, command_of(opt))
        except AdaBMError as error:
            refusal = str(error)
        except OSError as error:
            refusal = f"cannot write to {os.path.relpath(folder.parent)}: {error.strerror}"
    refusal = from_first(refusal)
    if refusal:
        raise AdaBMError(refusal)
    return note


def leave_folder(opt: Mapping[str, Any]) -> None:
    """Let other runs into a folder, if this process has taken it."""
    folder = Path(opt["path"]["log"])
    lock = _held.pop(folder, None)
    if lock is None:
        return
    _process_file(folder).unlink(missing_ok=True)
    lock.release()


def _take(folder: Path, command: str) -> str:
    if folder in _held:
        return ""
    shown = os.path.relpath(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Any thread may release it.
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), mode=GROUP_WRITES, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AdaBMError(
            f"name: {folder.name}: {_holder(folder)} is writing to {shown}; wait for it, end it, "
            "or choose another name"
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        return f"{shown} is on a disk without locks: start no other run of this name meanwhile"
    _held[folder] = lock
    note = ""
    if _process_file(folder).exists():
        note = f"{shown} is taken over from {_holder(folder)}, which is gone"
    process = {
        "pid": os.getpid(),
        "host": platform.node(),
        "started": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "command": command,
    }
    write_json(_process_file(folder), process)
    return note


def _process_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.process")


def _holder(folder: Path) -> str:
    """The process that took a folder last, in words."""
    try:
        process = json.loads(_process_file(folder).read_text(encoding="utf-8"))
        return printable(
            f"process {process['pid']} on {process['host']} (started {process['started']}: "
            f"{process['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun, or was cut off
        return "another process"
