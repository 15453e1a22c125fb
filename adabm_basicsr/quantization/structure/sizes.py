"""Images that a network takes, sizes found by trying, and mirrored borders for those that it doesn't.

Networks with windows or strides want sizes that are multiples of something.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError, first_line

MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
MIN_TRIED = 16  # pixels; smaller images fail in networks of wide kernels for another reason
MISTAKES = (AttributeError, ImportError, NameError, TypeError)  # of code, at any size
ODD_PRIMES = (3, 5, 7, 11, 13, 17, 19)


def find_size_multiple(network: nn.Module, example: Tensor) -> int:
    """The smallest number whose multiples ``network`` takes as height and width of an image.

    Args:
        network: Maps ``(B, C, H, W)`` to an image; run on small images of sizes that are not multiples of more.
        example: An image of the channels, type and device that the network takes, ``(1, C, H, W)``.

    Returns:
        The multiple; 1 for a network that takes any size. Among sizes that it runs on, one whose output has the
        input's proportions is preferred; a network that crops its borders gives none such.

    Raises:
        AdaBMError: The network takes none of the sizes that were tried.
    """
    errors, ran = [], []
    for multiple in MULTIPLES:
        height, width = trial_size(multiple)
        image = example.new_full((1, example.shape[1], height, width), 0.5)
        try:
            with torch.no_grad():
                output = network(image)
        except Exception as error:  # whatever the network's own code raises
            errors.append((f"{height}x{width}", error))
            continue
        if (
            isinstance(output, Tensor)
            and output.dim() == 4
            and output.shape[2] * width == output.shape[3] * height
        ):
            return multiple
        ran.append(multiple)
    if ran:
        return ran[0]
    size, error = errors[0]
    is_mistake = isinstance(error, MISTAKES)
    place = f", {_place(error)}" if is_mistake else ""
    advice = "" if is_mistake else "; if it needs sizes of another kind, give size_multiple"
    raise AdaBMError(
        f"{type(network).__name__} cannot be run on an image of {example.shape[1]} channels at any size tried "
        f"({size}: {first_line(error)}{place}){advice}"
    )


def _place(error: Exception) -> str:
    """File and line of the code that raised ``error``."""
    raised_at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(raised_at.filename).name}:{raised_at.lineno}"


def trial_size(multiple: int) -> tuple[int, int]:
    """Two sizes that are multiples of ``multiple`` and of as little else as possible."""
    first, second = [prime for prime in ODD_PRIMES if multiple * prime >= MIN_TRIED][:2]
    return multiple * first, multiple * second


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Mirror ``image``, ``(B, C, H, W)``, at its lower and right border up to the next multiple of ``multiple``."""
    for axis in (2, 3):
        if image.shape[axis] % multiple:
            image = image.index_select(axis, mirrored(image.shape[axis], multiple).to(image.device))
    return image


def mirrored(size: int, multiple: int) -> Tensor:
    """Where each row or column of a padded image comes from, to and fro for as long as it takes.

    As indices rather than by a pad operator, which in graphs hides the channels from OpenVINO.
    """
    period = torch.as_tensor(2 * size - 2).clamp(min=1)  # an image of one pixel is repeated
    position = torch.arange(size + -size % multiple) % period
    return (size - 1) - (size - 1 - position).abs()


def run_padded(network: nn.Module, image: Tensor, multiple: int) -> Tensor:
    """Output of ``network`` on ``image`` of any size, ``(B, C, H, W)`` to ``(B, C', sH, sW)``."""
    padded = pad_to_multiple(image, multiple)
    output = network(padded)
    if padded is image:
        return output
    height, width = (
        round(size * out / padded_size)
        for size, padded_size, out in zip(image.shape[2:], padded.shape[2:], output.shape[2:])
    )
    return output[..., :height, :width]
