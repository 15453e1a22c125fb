"""Checks of tensors that come from outside."""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError


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
    if isinstance(images, Tensor):
        has_shape = images.shape[1:-2] == (channels,)
        if has_shape and images.is_floating_point() and images.numel():
            return
        given = f"{images.dtype} of shape {tuple(images.shape)}"
    else:
        given = type(images).__name__
    raise AdaBMError(
        f"images: {given} can't be taken; valid: a float tensor (B, {channels}, H, W) in 0..1, "
        "not empty"
    )
