"""Channels of the images that a network takes, and whether it takes clips, found by trying."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.structure.clips import find_clip, frames_to_try
from adabm_basicsr.quantization.structure.sizes import (
    MISTAKES,
    find_size_multiple,
    pad_to_multiple,
)
from adabm_basicsr.quantization.user_code import users_code

IMAGE_SIZE = 48  # pixels
RGB = 3
GREY = 1


def example_of(network: nn.Module, channels: int) -> Tensor:
    """A grey image of so many channels, ``(1, C, H, W)``, on the network's device."""
    device = torch.device("cpu")
    for parameter in network.parameters():
        device = parameter.device
        break
    return torch.full((1, channels, IMAGE_SIZE, IMAGE_SIZE), 0.5, device=device)


def find_example(
    network: nn.Module,
    likeliest: Sequence[int] = (),
    size_multiple: int | None = None,
    likeliest_frames: Sequence[int] = (),
) -> Tensor:
    """A grey image that a network takes, ``(1, C, H, W)``; or a clip, ``(1, T, C, H, W)``.

    Args:
        network: Takes images or clips.
        likeliest: Channels to be tried first.
        size_multiple: What the sizes of its images are multiples of, if that is known.
        likeliest_frames: Numbers of frames of a clip to be tried first.

    Raises:
        AdaBMError: It runs on no image and no clip that was tried; the message says why it takes no
            image.
    """
    try:
        return example_of(network, find_image_channels(network, likeliest, size_multiple))
    except AdaBMError as error:
        images = []
        for channels in dict.fromkeys([*likeliest, RGB, GREY]):
            images.append(example_of(network, channels))
        clip = find_clip(network, images, likeliest_frames, size_multiple)
        if clip is not None:
            return clip
        if isinstance(error.__cause__, MISTAKES):
            raise
        tried = ", ".join(str(frames) for frames in sorted(frames_to_try(likeliest_frames)))
        raise AdaBMError(
            f"{error}; nor does it run on clips of {tried} frames (num_frame names another number)"
        ) from error.__cause__


def find_image_channels(
    network: nn.Module, likeliest: Sequence[int] = (), size_multiple: int | None = None
) -> int:
    """Channels of the images that ``network`` takes: the likeliest number with which it runs.

    Args:
        network: Maps ``(B, C, H, W)`` to an image. One whose layers take their shape from their
            first input isn't run.
        likeliest: What its options say, to be tried first.
        size_multiple: What the sizes of its images are multiples of, if that is known.

    Raises:
        AdaBMError: It runs with none of the numbers that its convolutions suggest.
    """
    numbers = _numbers_to_try(network, likeliest)
    if any(is_lazy(parameter) for parameter in network.parameters()):
        return numbers[0]
    problems = []
    for channels in numbers:
        try:
            _run(network, example_of(network, channels), size_multiple)
        except AdaBMError as error:
            if isinstance(error.__cause__, MISTAKES):
                raise
            problems.append(error)
        else:
            return channels
    others = ", ".join(str(channels) for channels in numbers[1:])
    raise AdaBMError(
        f"{problems[0]}; with {others} channels neither (in_channels says how many it takes)"
    ) from problems[0].__cause__


def _numbers_to_try(network: nn.Module, likeliest: Sequence[int]) -> list[int]:
    """Numbers of channels, the likeliest first: mostly the first convolution takes the image."""
    of_layers = []
    for module in network.modules():
        # Lazy ones don't know theirs yet.
        if isinstance(module, nn.Conv2d) and module.in_channels:
            of_layers.append(module.in_channels)
    numbers = [*likeliest, *of_layers[:1], RGB, *sorted({GREY, *of_layers})]
    return list(dict.fromkeys(numbers))


def _run(network: nn.Module, example: Tensor, size_multiple: int | None) -> None:
    """Run a network on images like ``example``, of a size that it takes.

    Raises:
        AdaBMError: It takes none.
    """
    if size_multiple is None:
        find_size_multiple(network, example)
        return
    image = pad_to_multiple(example, size_multiple)
    sentence = f"{type(network).__name__} cannot be run on an image of shape {tuple(image.shape)}"
    with users_code(network, sentence), torch.no_grad():
        network(image)
