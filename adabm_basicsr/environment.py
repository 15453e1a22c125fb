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


def weights_only() -> AbstractContextManager:
    """Context in which BasicSR's own ``torch.load`` loads tensors alone, never code.

    It does not say ``weights_only``, whose default is False up to torch 2.5. Can go when torch 2.6 is required.
    """
    return _environment(FORCED_LOADING, "1")


def own_unpickler() -> AbstractContextManager:
    """Context in which a package may load with a restricted unpickler of its own, as spandrel does.

    `weights_only` would forbid it.
    """
    return _environment(FORCED_LOADING, None)


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
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
    """Let glibc reuse large blocks instead of handing each back to the system, for the rest of the process.

    Every large feature map is otherwise mapped and cleared page by page, which takes about a tenth of a step on CPUs.
    Can go when torch's CPU allocator keeps blocks itself, as its CUDA allocator does.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
