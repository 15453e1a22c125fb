"""Image sizes that a network takes, found by trying, and mirrored borders for all others.

Networks with windows or strides want heights and widths that are multiples of something.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.user_code import failure, is_out_of_memory

MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
MIN_TRIED = 16  # pixels; smaller images fail in networks of wide kernels for another reason
MISTAKES = (AttributeError, ImportError, NameError, TypeError)  # of code, at any size
ODD_PRIMES = (3, 5, 7, 11, 13, 17, 19)
HEIGHT, WIDTH = 2, 3  # axes of an image


def find_size_multiple(network: nn.Module, example: Tensor) -> int:
    """The smallest number whose multiples ``network`` takes as height and width of an image.

    Args:
        network: Maps ``(B, C, H, W)`` to an image; run on small images of sizes that are not
            multiples of more.
        example: An image of the channels, type and device that the network takes, ``(1, C, H, W)``.

    Returns:
        The multiple; 1 for a network that takes any size. Among sizes that the network runs on,
        one whose output has the input's proportions is preferred; a network that crops its borders
        gives none such.

    Raises:
        AdaBMError: The network takes none of the sizes that were tried.
    """
    errors = []
    ran = []
    for multiple in MULTIPLES:
        height, width = trial_size(multiple)
        image = example.new_full((1, example.shape[1], height, width), 0.5)
        try:
            with torch.no_grad():
                output = network(image)
        except Exception as error:  # whatever the network's own code raises
            if is_out_of_memory(error):
                raise
            errors.append((f"{height}x{width}", error))
            continue
        if _has_proportions(output, height, width):
            return multiple
        ran.append(multiple)
    if ran:
        return ran[0]

    size, reason = errors[0]
    advice = "; if it needs sizes of another kind, give size_multiple"
    if isinstance(reason, MISTAKES):
        advice = ""
    raise AdaBMError(
        f"{type(network).__name__} cannot be run on an image of {example.shape[1]} channels at any "
        f"size tried ({size}: {failure(reason, network)}){advice}"
    ) from reason


def _has_proportions(output: object, height: int, width: int) -> bool:
    """Whether ``output`` is an image, as high for its width as ``height`` is for ``width``."""
    if not isinstance(output, Tensor) or output.dim() != 4:
        return False
    return output.shape[HEIGHT] * width == output.shape[WIDTH] * height


def trial_size(multiple: int) -> tuple[int, int]:
    """Two sizes that are multiples of ``multiple`` and of as little else as possible."""
    primes = [prime for prime in ODD_PRIMES if multiple * prime >= MIN_TRIED]
    return multiple * primes[0], multiple * primes[1]


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """``image``, mirrored at its lower and right border up to the next multiple of ``multiple``.

    Args:
        image: ``(B, C, H, W)``.
        multiple: What the padded height and width are multiples of.
    """
    for axis in (HEIGHT, WIDTH):
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
        network: Maps ``(B, C, H, W)`` to an image.
        image: The image.
        multiple: What heights and widths that the network takes are multiples of.
    """
    padded = pad_to_multiple(image, multiple)
    output = network(padded)
    if padded is image:
        return output
    height = round(image.shape[HEIGHT] * output.shape[HEIGHT] / padded.shape[HEIGHT])
    width = round(image.shape[WIDTH] * output.shape[WIDTH] / padded.shape[WIDTH])
    return output[..., :height, :width]
