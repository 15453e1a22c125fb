"""Settings of the whole process: how torch loads files, and how memory is kept."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

FORCED_LOADING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
MEMORY_INFO = Path("/proc/meminfo")
OWN_STATUS = Path("/proc/self/status")
# What a container may take, in bytes or "max": of both kinds of cgroups.
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
# Of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def weights_only() -> AbstractContextManager[None]:
    """Context in which BasicSR's own ``torch.load`` loads tensors alone, never code.

    BasicSR doesn't pass ``weights_only``, whose default is False up to torch 2.5. Can go when torch
    2.6 is required.
    """
    return _environment(FORCED_LOADING, "1")


def own_unpickler() -> AbstractContextManager[None]:
    """Context in which a package may load with a restricted unpickler of its own, as spandrel does.

    `weights_only` would forbid it.
    """
    return _environment(FORCED_LOADING, None)


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set a variable of the environment within this context; None leaves it unset there."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks for the rest of the process, not hand each back to the system.

    Otherwise every large feature map is mapped and cleared page by page, which takes about a tenth
    of an iteration on CPUs. Can go when torch's CPU allocator keeps blocks itself, as its CUDA
    allocator does.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def most_memory() -> int | None:
    """Bytes of memory that this process can hold, with what it holds; None where nothing says so.

    It is what the system has left, or the limit of a container if that is less. Memory that the
    process holds counts as free, as it keeps what it has freed.
    """
    if not MEMORY_INFO.is_file():
        return None
    most = _kibibytes(MEMORY_INFO, "MemAvailable:") + _kibibytes(OWN_STATUS, "VmRSS:")
    for limit in CONTAINER_LIMITS:
        text = limit.read_text().strip() if limit.is_file() else ""
        if text.isdecimal():
            most = min(most, int(text))
    return most


def _kibibytes(file: Path, key: str) -> int:
    """A number of a file of Linux's ``/proc``, in bytes; 0 if it isn't there."""
    for line in file.read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return 0
