"""Image sizes that a network takes, found by trying, and mirrored borders for all others.

Networks with windows or strides want heights and widths that are multiples of something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.checks import CLIP_AXES, IMAGE_AXES
from adabm_basicsr.quantization.user_code import failure, is_out_of_memory

MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
MIN_TRIED = 16  # pixels; smaller images fail in networks of wide kernels for another reason
MISTAKES = (AttributeError, ImportError, NameError, TypeError)  # of code, at any size
ODD_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 67, 71)
# Pixels of small frames. Networks that take clips want frames of at least 33 or 64, if they halve
# them several times to estimate flow.
SMALL_FRAMES = (16, 33, 64)


def find_size_multiple(network: nn.Module, example: Tensor) -> int:
    """The smallest number whose multiples ``network`` takes as height and width of an image.

    Args:
        network: Maps ``(B, C, H, W)`` to an image, or takes clips; run on small images of sizes
            that are not multiples of more.
        example: An image of the channels, type and device that the network takes, ``(1, C, H, W)``;
            or a clip of the frames that it takes, ``(1, T, C, H, W)``.

    Returns:
        The multiple; 1 for a network that takes any size. Among sizes that the network runs on,
        one whose output has the input's proportions is preferred; a network that crops its borders
        gives none such.

    Raises:
        AdaBMError: The network takes none of the sizes that were tried.
    """
    return find_sizes(network, example).multiple


class Sizes(NamedTuple):
    """Sizes that a network takes.

    Attributes:
        multiple: What heights and widths are multiples of, see `find_size_multiple`.
        tried: Height and width of the small image that it was run on.
    """

    multiple: int
    tried: tuple[int, int]


def find_sizes(network: nn.Module, example: Tensor) -> Sizes:
    """The sizes that a network takes; arguments and errors are those of `find_size_multiple`."""
    takes_clips = example.dim() == CLIP_AXES
    errors = []
    ran = []
    for multiple in MULTIPLES:
        smallest = SMALL_FRAMES[-1] if takes_clips else MIN_TRIED
        height, width = trial_size(multiple, smallest)
        sizes = Sizes(multiple, (height, width))
        image = different_frames(example, (*example.shape[:-2], height, width))
        try:
            with torch.no_grad():
                output = network(image)
        except Exception as error:  # whatever the network's own code raises
            if is_out_of_memory(error):
                raise
            errors.append((f"{height}x{width}", error))
            continue
        if _has_proportions(output, image):
            return sizes
        ran.append(sizes)
    if ran:
        return ran[0]

    size, reason = errors[0]
    advice = "; if it needs sizes of another kind, give size_multiple"
    if isinstance(reason, MISTAKES):
        advice = ""
    kind = "a clip" if takes_clips else "an image"
    raise AdaBMError(
        f"{type(network).__name__} cannot be run on {kind} of {example.shape[-3]} channels at any "
        f"size tried ({size}: {failure(reason, network)}){advice}"
    ) from reason


def smallest_clip(network: nn.Module, example: Tensor, multiple: int) -> Tensor:
    """The smallest clip of those tried that a network runs on, ``(1, T, C, H, W)``.

    Args:
        network: It takes clips.
        example: A clip that it takes, which is returned where no smaller one is.
        multiple: What the sizes of its frames are multiples of.
    """
    for smallest in SMALL_FRAMES:
        size = trial_size(multiple, smallest)
        clip = different_frames(example, (*example.shape[:-2], *size))
        if clip.numel() < example.numel() and runs(network, clip):
            return clip
    return example


def runs(network: Callable[[Tensor], Tensor], image: Tensor) -> bool:
    """Whether a network runs on an image or a clip."""
    try:
        with torch.no_grad():
            network(image)
    except Exception as error:  # whatever the network's own code raises
        if is_out_of_memory(error):
            raise
        return False
    return True


def different_frames(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A grey image, or a clip whose frames get brighter, of the type and device of ``like``.

    Networks may look whether a clip is the same backwards.
    """
    if len(shape) != CLIP_AXES:
        return like.new_full(shape, 0.5)
    brightness = torch.arange(1, shape[1] + 1).to(like) / (shape[1] + 1)
    return brightness.view(1, -1, 1, 1, 1).expand(shape).clone()


def _has_proportions(output: object, image: Tensor) -> bool:
    """Whether ``output`` is an image or a clip, as high for its width as ``image`` is."""
    if not isinstance(output, Tensor) or output.dim() not in (IMAGE_AXES, image.dim()):
        return False
    return output.shape[-2] * image.shape[-1] == output.shape[-1] * image.shape[-2]


def trial_size(multiple: int, smallest: int = MIN_TRIED) -> tuple[int, int]:
    """Two sizes that are multiples of ``multiple`` and of as little else as possible.

    Args:
        multiple: What both are multiples of.
        smallest: What both are at least, in pixels; at most 64.
    """
    primes = [prime for prime in ODD_PRIMES if multiple * prime >= smallest]
    return multiple * primes[0], multiple * primes[1]


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """``image``, mirrored at its lower and right border up to the next multiple of ``multiple``.

    Args:
        image: ``(B, C, H, W)``, or a clip, ``(B, T, C, H, W)``.
        multiple: What the padded height and width are multiples of.
    """
    for axis in (image.dim() - 2, image.dim() - 1):
        size = image.shape[axis]
        if size % multiple:
            indices = mirrored(size, multiple, image.device)
            image = image.index_select(axis, indices)
    return image


def mirrored(size: int, multiple: int, device: torch.device | None = None) -> Tensor:
    """Where each row or column of a padded image comes from, to and fro for as long as it takes.

    As indices rather than by a pad operator, which in graphs hides the channels from OpenVINO.

    Args:
        size: Height or width of the image, in pixels.
        multiple: What the padded height or width is a multiple of.
        device: Where to put the indices, the CPU by default.

    Returns:
        Indices in ``0 .. size - 1``, as many as the padded image has rows or columns.
    """
    # An image of one pixel is repeated.
    period = torch.as_tensor(2 * size - 2).clamp(min=1)
    position = torch.arange(size + -size % multiple, device=device) % period
    return (size - 1) - (size - 1 - position).abs()


def run_one_by_one(network: Callable[[Tensor], Tensor], images: Tensor, multiple: int) -> Tensor:
    """`run_padded` of each of several images, ``(B, C, H, W)``, for what takes one at a time."""
    outputs = []
    for image in images.split(1):
        outputs.append(run_padded(network, image, multiple))
    return torch.cat(outputs)


def run_padded(network: Callable[[Tensor], Tensor], image: Tensor, multiple: int) -> Tensor:
    """Output of ``network`` on ``image`` of any size, ``(B, C, H, W)`` to ``(B, C', sH, sW)``.

    Args:
        network: Maps ``(B, C, H, W)`` to an image, or takes clips.
        image: The image, or a clip, ``(B, T, C, H, W)``.
        multiple: What heights and widths that the network takes are multiples of.
    """
    padded = pad_to_multiple(image, multiple)
    output = network(padded)
    if padded is image:
        return output
    height = round(image.shape[-2] * output.shape[-2] / padded.shape[-2])
    width = round(image.shape[-1] * output.shape[-1] / padded.shape[-1])
    return output[..., :height, :width]
