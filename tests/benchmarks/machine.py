"""What a benchmark ran on, and how much memory its process took."""

from __future__ import annotations

import os
from pathlib import Path

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
