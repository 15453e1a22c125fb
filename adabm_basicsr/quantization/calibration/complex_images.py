"""Which images run in full precision: the most complex ones, as many as asked for or needed.

Complexity says which images lose much by quantization, though not in every network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adabm_basicsr.errors import OptionError
from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.calibration.quality import Goal
from adabm_basicsr.quantization.network import QuantizedNetwork

MOST = 0.5  # of the images; with more of them, little is quantized


class ComplexImages(NamedTuple):
    """The most complex ones of a set of images.

    Attributes:
        share: Their share of the set, 0..1.
        above: A complexity that theirs are above, and others' aren't.
    """

    share: float
    above: float


def most_complex(complexities: Tensor, count: int) -> ComplexImages:
    """Those ``count`` of a set that are most complex, and all that are as complex as these.

    The simplest of all never count.

    Args:
        complexities: Of the set's images, ``(N,)``.
        count: How many, at least 1.
    """
    ordered = complexities.sort(descending=True).values
    last = ordered[count - 1]
    simpler = ordered[ordered < last]
    above = float(last)
    if len(simpler):
        # Between two images, so that no rounding moves one to the other side.
        above = float((last + simpler[0]) / 2)
    chosen = int((ordered > above).sum())
    return ComplexImages(chosen / len(ordered), above)


def share_of_images(batches: Sequence[Tensor], share: float) -> ComplexImages:
    """The most complex share of images.

    Args:
        batches: Batches of LR images, each ``(B, C, H, W)``.
        share: Above 0 and below 1.

    Raises:
        OptionError: No image is more complex than the others.
    """
    complexities = torch.cat([image_complexity(batch) for batch in batches])
    found = most_complex(complexities, max(round(share * len(complexities)), 1))
    if not found.share:
        raise OptionError(
            f"full_precision_images: {share:g}, but no calibration image is more complex than the "
            "others; give more images, or 0"
        )
    return found


def fewest_images(net: QuantizedNetwork, goal: Goal) -> ComplexImages | None:
    """The fewest images with which in full precision a calibrated network meets a goal.

    They are found by halving, each time measured.

    Args:
        net: The network, which quantizes all images, and does so afterwards.
        goal: The goal.

    Returns:
        None where not even `MOST` of the images do, or where the network can't choose by the image.
    """
    if net.clips is not None or not net.config.integers_of.image_classes:
        return None
    complexities = torch.cat([image_complexity(images) for images in goal.images()])
    low = 1
    high = int(MOST * len(complexities))
    if not high or not _meets(net, goal, most_complex(complexities, high)):
        return None
    while low < high:
        middle = (low + high) // 2
        if _meets(net, goal, most_complex(complexities, middle)):
            high = middle
        else:
            low = middle + 1
    return most_complex(complexities, high)


def _meets(net: QuantizedNetwork, goal: Goal, images: ComplexImages) -> bool:
    """Whether a network meets a goal with these images in full precision."""
    net.keep_images_in_float(images.above)
    missing = goal.missing(net)
    net.full_precision_above = None
    return missing <= 0
