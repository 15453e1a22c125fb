"""Clips that a network takes, found by trying.

Windowed networks take a fixed number of frames and give the one in the middle. Recurrent ones take
any number and give as many. Some take a fixed number and give as many: they are used as windowed
ones, of which the middle frame is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.checks import CLIP_AXES
from adabm_basicsr.quantization.structure.sizes import different_frames, pad_to_multiple, runs
from adabm_basicsr.quantization.user_code import users_code

FRAME_SIZE = 64  # pixels; networks that halve images several times want so many
# Windows of published networks, the likeliest first; odd, so that there is a middle frame.
FRAMES = (5, 7, 3, 9, 11, 13, 15)
FEW_FRAMES = 7  # of a clip that is no window


@dataclass
class Clips:
    """Clips that a network takes.

    Attributes:
        frames: Frames of the clip that it was run on.
        any_length: Whether it takes clips of other lengths, and gives a frame for each that it
            takes; otherwise it gives one frame, or takes clips of that length alone.
    """

    frames: int
    any_length: bool

    @property
    def window(self) -> int | None:
        """Frames of a window, for the frame in its middle; None if it makes those of any clip."""
        return None if self.any_length else self.frames

    def fit(self, shape: torch.Size) -> bool:
        """Whether a tensor of that shape is a clip of as many frames as the network takes."""
        return len(shape) == CLIP_AXES and (self.any_length or shape[1] == self.frames)


@dataclass(frozen=True)
class Least:
    """The least that a network takes of clips: either frames, or pixels.

    Attributes:
        frames: Frames of a clip.
        side: Height and width of a frame, in pixels.
    """

    frames: int | None = None
    side: int | None = None

    def __str__(self) -> str:
        if self.frames is not None:
            return f"clips of at least {self.frames} frames"
        return f"frames of at least {self.side}x{self.side} pixels"


def clip_of(like: Tensor, frames: int) -> Tensor:
    """A clip of so many frames, ``(1, T, C, H, W)``, with the channels of an image."""
    channels = like.shape[1]
    return different_frames(like, (1, frames, channels, FRAME_SIZE, FRAME_SIZE))


def few_frames(images: Tensor) -> Tensor:
    """The first frames of clips that are longer than any window; windows and images as they are.

    Args:
        images: ``(B, C, H, W)`` or ``(B, T, C, H, W)``.
    """
    if images.dim() == CLIP_AXES and images.shape[1] > max(FRAMES):
        return images[:, :FEW_FRAMES]
    return images


def middle_frame(clip: Tensor) -> Tensor:
    """The frame ``(B, C, H, W)`` in the middle of a clip ``(B, T, C, H, W)``."""
    return clip[:, clip.shape[1] // 2]


def frames_to_try(likeliest: Sequence[int]) -> list[int]:
    """Numbers of frames that networks are tried on, ``likeliest`` first."""
    return list(dict.fromkeys([*likeliest, *FRAMES]))


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
    for frames in frames_to_try(likeliest):
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


def find_least(network: Callable[[Tensor], Tensor], clip: Tensor) -> Least | None:
    """What a clip has too little of for a network to run on it.

    Args:
        network: It takes clips, and frames of any size that are large enough.
        clip: ``(B, T, C, H, W)``; what is in it doesn't matter.

    Returns:
        None if the network runs on it, or fails for another reason.
    """
    # Enough to tell, and quickly run.
    clip = few_frames(clip)[..., :FRAME_SIZE, :FRAME_SIZE]
    if _takes(network, clip, 0, 0):
        return None
    frames, _, height, width = clip.shape[1:]
    side = _least(lambda side: _takes(network, clip, frames, side), min(height, width), FRAME_SIZE)
    if side is not None:
        return Least(side=side)
    # It may have too few frames and too small ones: large ones tell how many there have to be.
    enough = _least(lambda count: _takes(network, clip, count, FRAME_SIZE), frames, FEW_FRAMES)
    if enough is not None:
        return Least(frames=enough)
    return None


def _takes(network: Callable[[Tensor], Tensor], clip: Tensor, frames: int, side: int) -> bool:
    """Whether a network runs on a clip of at least so many frames, of sides of at least so many."""
    count, channels, height, width = clip.shape[1:]
    shape = (1, max(count, frames), channels, max(height, side), max(width, side))
    return runs(network, different_frames(clip, shape))


def _least(takes: Callable[[int], bool], too_small: int, large: int) -> int | None:
    """The least number that is taken, found by halving what is left; None if ``large`` isn't.

    Args:
        takes: Whether a number, and so all larger ones, are taken.
        too_small: A number that isn't.
        large: One that may be.
    """
    if large <= too_small or not takes(large):
        return None
    while large - too_small > 1:
        middle = (too_small + large) // 2
        if takes(middle):
            large = middle
        else:
            too_small = middle
    return large


@contextmanager
def naming_least(name: str, network: Callable[[Tensor], Tensor], clip: Tensor) -> Iterator[None]:
    """Within this context a network runs on a clip; an error says if that has too little of it.

    Args:
        name: Of the network, for the message.
        network: See `find_least`.
        clip: The clip; of an image errors stay as they are.

    Raises:
        AdaBMError: The network doesn't take the clip.
    """
    try:
        yield
    except AdaBMError as error:
        if clip.dim() != CLIP_AXES:
            raise
        least = find_least(network, clip)
        if least is None:
            raise
        frames, _, height, width = clip.shape[1:]
        raise AdaBMError(
            f"{name} takes {least}, but the clip has {frames} of {width}x{height} pixels"
        ) from error


def find_taken_clips(network: nn.Module, example: Tensor) -> Clips | None:
    """Which clips a network takes; None of one that takes images.

    Args:
        network: The network; left as it was.
        example: An input of it, ``(1, C, H, W)`` or ``(1, T, C, H, W)``.

    Raises:
        AdaBMError: It doesn't take the example, makes another number of frames of it, or takes the
            axes of clips in another order.
    """
    if example.dim() != CLIP_AXES:
        return None
    name = type(network).__name__
    output = run_on_clip(network, example)
    taken = example.shape[1]
    if output.dim() == CLIP_AXES and output.shape[1] != taken:
        raise AdaBMError(
            f"{name} makes {output.shape[1]} frames of a clip of {taken}; it has to make "
            "one of each, (B, T, C, H, W), or the middle one alone, (B, C, H, W)"
        )
    if _takes_channels_first(network, example):
        raise AdaBMError(f"{name} takes clips (B, C, T, H, W); it has to take (B, T, C, H, W)")
    any_length = output.dim() == CLIP_AXES and _makes_longer_clips(network, example)
    return Clips(taken, any_length)


def _makes_longer_clips(network: nn.Module, example: Tensor) -> bool:
    """Whether a network makes a frame for each of a clip that is longer than the example."""
    longer = _a_frame_longer(example)
    try:
        output = run_on_clip(network, longer)
    except AdaBMError:
        return False
    return output.dim() == CLIP_AXES and output.shape[1] == longer.shape[1]


def _takes_channels_first(network: nn.Module, example: Tensor) -> bool:
    """Whether a network takes ``(B, C, T, H, W)``, and the example as it has as many of both."""
    taken, channels = example.shape[1:3]
    if taken != channels:
        return False
    longer = _a_frame_longer(example)
    return runs(network, longer.transpose(1, 2)) and not runs(network, longer)


def _a_frame_longer(clip: Tensor) -> Tensor:
    """A clip of one frame more, of other pixels."""
    return different_frames(clip, (1, clip.shape[1] + 1, *clip.shape[2:]))
