"""How exactly GPUs compute while a network is calibrated and fine-tuned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import cudnn


@contextmanager
def full_float32() -> Iterator[None]:
    """Context in which convolutions on GPUs don't round float32 to TF32, as they do by default.

    TF32 has ten bits behind the first. What calibration compares differs by less than they hold:
    bits would be shared out otherwise than on a CPU, and the quality would be another. The setting
    is one of the whole process. Whole numbers of up to 8 bits pass through TF32 unchanged, so
    inference doesn't need this.
    """
    if hasattr(cudnn, "conv"):
        before = cudnn.conv.fp32_precision
        cudnn.conv.fp32_precision = "ieee"
        try:
            yield
        finally:
            cudnn.conv.fp32_precision = before
        return
    # PyTorch before 2.9.
    allowed = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = allowed
