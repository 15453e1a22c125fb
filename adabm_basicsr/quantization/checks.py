"""Checks of tensors that come from outside."""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError

IMAGE_AXES = 4  # of (B, C, H, W)
CLIP_AXES = 5  # of (B, T, C, H, W)


def check_finite(x: Tensor, what: str) -> None:
    """Reject NaN and infinity.

    Args:
        x: Tensor of any shape.
        what: Its name in the message.

    Raises:
        AdaBMError: ``x`` holds NaN or infinity.
    """
    if not torch.isfinite(x).all():
        raise AdaBMError(f"{what} holds NaN or infinite values")


def check_images(images: Tensor, channels: int) -> None:
    """Reject what a network can't take as images.

    Args:
        images: What was given.
        channels: Channels that the network takes.

    Raises:
        AdaBMError: ``images`` is not a floating-point tensor ``(B, channels, H, W)`` with pixels.
    """
    has_shape = isinstance(images, Tensor) and images.shape[1:-2] == (channels,)
    _check_input("images", images, has_shape, f"(B, {channels}, H, W)")


def check_clips(clips: Tensor, channels: int, frames: int | None) -> None:
    """Reject what a network can't take as clips.

    Args:
        clips: What was given.
        channels: Channels of the frames that the network takes.
        frames: How many frames it takes; None for any number.

    Raises:
        AdaBMError: ``clips`` is not a floating-point tensor ``(B, frames, channels, H, W)`` with
            pixels.
    """
    has_shape = False
    if isinstance(clips, Tensor) and clips.dim() == CLIP_AXES:
        has_shape = clips.shape[2] == channels and frames in (None, clips.shape[1])
    _check_input("clips", clips, has_shape, f"(B, {frames or 'T'}, {channels}, H, W)")


def _check_input(what: str, given: object, has_shape: bool, shape: str) -> None:
    """Reject what isn't of a network's shape, isn't floating-point or is empty."""
    if isinstance(given, Tensor):
        if has_shape and given.is_floating_point() and given.numel():
            return
        described = f"{given.dtype} of shape {tuple(given.shape)}"
    else:
        described = type(given).__name__
    raise AdaBMError(
        f"{what}: {described} can't be taken; valid: a float tensor {shape} in 0..1, not empty"
    )
