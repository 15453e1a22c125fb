"""Settings of the whole process: how torch loads files, and how memory is kept."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

FORCED_LOADING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
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
