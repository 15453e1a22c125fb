"""Checks of tensors that come from outside."""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError


def check_finite(x: Tensor, what: str) -> None:
    """Raise `AdaBMError` if ``x`` holds NaN or infinity; ``what`` names it."""
    if not torch.isfinite(x).all():
        raise AdaBMError(f"{what} holds NaN or infinite values")


def check_images(images: Tensor, channels: int) -> None:
    """Raise `AdaBMError` unless ``images`` is a floating-point tensor ``(B, channels, H, W)`` with pixels in it."""
    is_tensor = isinstance(images, Tensor)
    if (
        is_tensor
        and images.is_floating_point()
        and images.numel()
        and images.shape[1:-2] == (channels,)
    ):
        return
    given = f"{images.dtype} of shape {tuple(images.shape)}" if is_tensor else type(images).__name__
    raise AdaBMError(
        f"images: {given} can't be taken; valid: a float tensor (B, {channels}, H, W) in 0..1, not empty"
    )
