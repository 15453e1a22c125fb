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

    Attributes:
        kept_bytes: Size of what is kept, at most `MAX_BYTES`.
    """

    def __init__(self, net: QuantizedNetwork) -> None:
        self.net = net
        self._kept: dict[int, tuple[Tensor, ...]] = {}  # output and features of each patch
        self.kept_bytes = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, forward: nn.Module, keys: Sequence[int] | None = None) -> Details:
        """Output and features for a batch; blocks' outputs have the samples of the batch along their first axis.

        Args:
            images: ``(B, C, H, W)`` in 0..1.
            forward: What to call instead of the network itself, such as a ``DataParallel`` wrapper of it.
            keys: A key for each image that comes back unchanged; None where images don't.
        """
        if keys is None:
            return self._compute(images, forward)
        new = [index for index, key in enumerate(keys) if key not in self._kept]
        patches = {key: self._kept[key] for key in keys if key in self._kept}
        if new:
            details = self._compute(images[new], forward)
            tensors = (details.output, *details.features)
            if any(len(t) % len(new) for t in tensors):  # a block without an output for each sample
                return self._compute(images, forward)
            parts = zip(*(t.chunk(len(new)) for t in tensors))
            for index, patch in zip(new, parts, strict=True):
                patches[keys[index]] = patch
                self._keep(keys[index], patch)
        output, *features = (torch.cat(parts) for parts in zip(*(patches[key] for key in keys)))
        return Details(output, output.new_empty(0), features)

    def _compute(self, images: Tensor, forward: nn.Module) -> Details:
        with self.net.full_precision():
            return forward(images, True)  # by position: DataParallel can't share a keyword among fewer images

    def _keep(self, key: int, patch: tuple[Tensor, ...]) -> None:
        size = sum(t.numel() * t.element_size() for t in patch)
        if self.kept_bytes + size <= MAX_BYTES:
            self.kept_bytes += size
            self._kept[key] = tuple(t.clone() for t in patch)  # not a view of the batch, which would stay too

    def __contains__(self, key: int) -> bool:
        """Whether the patch of that key is kept."""
        return key in self._kept

    def forget(self) -> None:
        """Free what is kept."""
        self._kept.clear()
        self.kept_bytes = 0
