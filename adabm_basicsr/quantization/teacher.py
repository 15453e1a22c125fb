"""What the full-precision network makes of calibration patches, computed once for patches that come back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.network import Details, QuantizedNetwork

MAX_BYTES = 1 << 30  # of outputs and features that are kept; what doesn't fit is computed anew


class Teacher:
    """The full-precision network, with a memory for patches that are told apart by a key.

    Args:
        net: The quantized network, whose quantizers are switched off for the teacher's passes.
    """

    def __init__(self, net: QuantizedNetwork) -> None:
        self.net = net
        self._kept: dict[int, tuple[Tensor, ...]] = {}  # output and features of each patch
        self._bytes = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, forward: nn.Module, keys: Sequence[int] | None = None) -> Details:
        """Output and features for a batch.

        Args:
            images: ``(B, C, H, W)`` in 0..1.
            forward: What to call instead of the network itself, such as a ``DataParallel`` wrapper of it.
            keys: A key for each image that comes back unchanged; None where images don't.
        """
        if keys is not None and all(key in self._kept for key in keys):
            output, *features = (torch.cat(parts) for parts in zip(*(self._kept[key] for key in keys)))
            return Details(output, torch.empty(0), features)
        with self.net.full_precision():
            details = forward(images, True)  # by position: DataParallel can't share a keyword among fewer images
        if keys is not None:
            self._keep(keys, [details.output, *details.features])
        return details

    def _keep(self, keys: Sequence[int], tensors: list[Tensor]) -> None:
        size = sum(t.numel() * t.element_size() for t in tensors)
        if self._bytes + size <= MAX_BYTES:
            self._bytes += size
            # A feature may have several rows for each image, such as windows, which follow one another.
            self._kept.update(zip(keys, zip(*(t.chunk(len(keys)) for t in tensors))))
