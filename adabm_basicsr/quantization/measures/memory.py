"""How much memory a network takes for an image, and images of which it takes no more than usual.

Most networks take a few kilobytes for each pixel, of images of any size. With attention over the
whole image they take as much as the square of its size.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adabm_basicsr.quantization.checks import CLIP_AXES
from adabm_basicsr.quantization.structure.clips import few_frames

# Of a forward pass for each LR pixel of a batch; EDSR x4 with 64 features takes 9,000.
USUAL_BYTES = 10_000
MIN_SIDE = 16  # pixels
# Sides of the images that growth is measured on, and of the frames: flow is estimated from 64 on.
SIDES = (32, 64)
SIDES_OF_FRAMES = (64, 128)


class _MemoryCounter(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active, and live at once.

    Attributes:
        peak: The most bytes that were live at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


@torch.no_grad()
def forward_bytes(forward: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """The most bytes that tensors take at once in a forward pass, beside weights.

    Args:
        forward: Runs a network.
        image: ``(B, C, H, W)`` in 0..1.
    """
    with _MemoryCounter() as counter:
        forward(image)
    return counter.peak


def within_memory(net: nn.Module, images: Tensor) -> Tensor:
    """The images, or their centres where a network takes far more memory than others do.

    Centres are halves, quarters and so on of the images' sides, of which a forward pass takes no
    more than `USUAL_BYTES` for each pixel of the images.

    Args:
        net: The network.
        images: ``(B, C, H, W)`` in 0..1, or clips, ``(B, T, C, H, W)``.
    """
    most = USUAL_BYTES * pixels_of(images[0])
    while min(images.shape[-2:]) >= 2 * MIN_SIDE and forward_bytes(net, images[:1]) > most:
        images = centres(images, images.shape[-2] // 2, images.shape[-1] // 2)
    return images


def pixels_of(sample: Tensor) -> int:
    """Pixels of an image, ``(C, H, W)``, or of all frames of a clip, ``(T, C, H, W)``."""
    return sample.numel() // sample.shape[-3]


def centres(images: Tensor, height: int, width: int) -> Tensor:
    """The middle of images or clips, ``(..., H, W)``, of so many pixels or fewer."""
    height = min(height, images.shape[-2])
    width = min(width, images.shape[-1])
    top = (images.shape[-2] - height) // 2
    left = (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def estimate_bytes(forward: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """About how many bytes a forward pass of a large image takes, without running it.

    It is measured on two small parts of the image, one of four times the pixels of the other: the
    whole takes more in the same way, in proportion to its pixels, to their square or between. A
    clip that is longer than any window is measured by a few frames: more take more in proportion.

    Args:
        forward: Runs a network.
        image: ``(1, C, H, W)`` in 0..1, or a clip, ``(1, T, C, H, W)``.
    """
    part = few_frames(image)
    small_side, large_side = SIDES_OF_FRAMES if image.dim() == CLIP_AXES else SIDES
    # Copies, as a view holds the memory of the whole image.
    small = centres(part, small_side, small_side).clone()
    large = centres(part, large_side, large_side).clone()
    large_bytes = forward_bytes(forward, large)
    times_longer = image.numel() / part.numel()
    times_larger = part.numel() / large.numel()
    ratio = large.numel() / small.numel()
    power = 1.0
    if ratio > 1:
        growth = large_bytes / max(forward_bytes(forward, small), 1)
        # 1 where memory grows with the pixels, 2 where it grows with their square.
        power = math.log(growth) / math.log(ratio)
    return int(large_bytes * times_longer * times_larger ** min(max(power, 1), 2))
