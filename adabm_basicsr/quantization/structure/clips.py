"""Clips that a network takes, found by trying.

Windowed networks take a fixed number of frames and give one. Recurrent ones take any number and
give as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.checks import CLIP_AXES
from adabm_basicsr.quantization.structure.sizes import different_frames, pad_to_multiple
from adabm_basicsr.quantization.user_code import users_code

EXAMPLE_SIZE = 64  # pixels; networks that halve images several times want so many
# Windows of published networks, the likeliest first; odd, so that there is a middle frame.
FRAMES = (5, 7, 3, 9, 11, 13, 15)
FEW_FRAMES = 7  # of a clip that is no window


@dataclass
class Clips:
    """Clips that a network takes.

    Attributes:
        frames: Frames of the clip that it was run on.
        any_length: Whether it takes clips of other lengths, and gives a frame for each that it
            takes; otherwise it gives one frame.
    """

    frames: int
    any_length: bool

    @property
    def window(self) -> int | None:
        """Frames of a window, of which it makes one frame; None if it makes those of any clip."""
        return None if self.any_length else self.frames

    def fit(self, shape: torch.Size) -> bool:
        """Whether a tensor of that shape is a clip of as many frames as the network takes."""
        return len(shape) == CLIP_AXES and (self.any_length or shape[1] == self.frames)


def clip_of(like: Tensor, frames: int) -> Tensor:
    """A clip of so many frames, ``(1, T, C, H, W)``, with the channels of an image."""
    channels = like.shape[1]
    return different_frames(like, (1, frames, channels, EXAMPLE_SIZE, EXAMPLE_SIZE))


def few_frames(images: Tensor) -> Tensor:
    """The first frames of clips that are longer than any window; windows and images as they are.

    Args:
        images: ``(B, C, H, W)`` or ``(B, T, C, H, W)``.
    """
    if images.dim() == CLIP_AXES and images.shape[1] > max(FRAMES):
        return images[:, :FEW_FRAMES]
    return images


def find_clip(
    network: nn.Module,
    images: Sequence[Tensor],
    likeliest: Sequence[int] = (),
    size_multiple: int | None = None,
) -> Tensor | None:
    """A clip that ``network`` takes, ``(1, T, C, H, W)``; None if it runs on none.

    Args:
        network: Maybe maps ``(B, T, C, H, W)`` to a clip or to an image.
        images: Images of the numbers of channels to try, the likeliest first.
        likeliest: Numbers of frames to be tried first.
        size_multiple: What the sizes of its frames are multiples of, if that is known.
    """
    for frames in dict.fromkeys([*likeliest, *FRAMES]):
        for image in images:
            clip = clip_of(image, frames)
            try:
                run_on_clip(network, pad_to_multiple(clip, size_multiple or 1))
            except AdaBMError:
                continue
            return clip
    return None


def run_on_clip(network: nn.Module, clip: Tensor) -> Tensor:
    """What ``network`` makes of a clip, ``(B, T, C, H, W)``.

    Raises:
        AdaBMError: It doesn't take it.
    """
    sentence = f"{type(network).__name__} cannot be run on a clip of shape {tuple(clip.shape)}"
    with users_code(network, sentence), torch.no_grad():
        output: Tensor = network(clip.clone())
    return output


def find_clips(network: nn.Module, example: Tensor) -> Clips | None:
    """Which clips a network takes; None of one that takes images.

    Args:
        network: The network; left as it was.
        example: An input of it, ``(1, C, H, W)`` or ``(1, T, C, H, W)``.

    Raises:
        AdaBMError: It doesn't take the example.
    """
    if example.dim() != CLIP_AXES:
        return None
    output = run_on_clip(network, example)
    return Clips(example.shape[1], any_length=output.dim() == CLIP_AXES)
