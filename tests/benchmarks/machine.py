"""What a benchmark ran on, and how much memory its process took."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
LIMIT = "ONEDNN_MAX_CPU_ISA"


def peak_bytes() -> int:
    """Largest resident memory of this process so far.

    `resource.getrusage` doesn't do: its maximum begins with what the process that started this one
    held. The kernel's `VmHWM` begins anew with each program.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status names no VmHWM")


def describe_cpu() -> dict[str, str]:
    """Model of the CPU, which of `FLAGS` it has, and what limits kernels to fewer of them."""
    facts = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    has = facts.get("flags", "").split()
    return {
        "model": facts.get("model name", "unknown"),
        "cores": str(os.cpu_count()),
        "flags": ", ".join(flag for flag in FLAGS if flag in has),
        LIMIT: os.environ.get(LIMIT, ""),
    }


class GpuWaits:
    """Context that counts how often the program waits for a GPU, by torch's own account.

    Args:
        device: The device; a CPU isn't waited for.

    Attributes:
        count: How often it waited.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_on_gpu = device.type == "cuda"
        self.count = 0

    def __enter__(self) -> GpuWaits:
        self._catching = warnings.catch_warnings(record=True)
        self._caught = self._catching.__enter__()
        warnings.simplefilter("always")
        if self.is_on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        self._catching.__exit__(*error)
        self.count = sum("synchroniz" in str(warning.message) for warning in self._caught)
