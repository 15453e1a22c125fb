"""Which images run in full precision: the most complex ones.

Complexity says which images lose much by quantization, though not in every network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adabm_basicsr.quantization.bit_mapping import image_complexity


class ComplexImages(NamedTuple):
    """The most complex ones of a set of images.

    Attributes:
        share: Their share of the set, 0..1.
        above: A complexity that theirs are above, and others' aren't.
    """

    share: float
    above: float


def most_complex(complexities: Tensor, count: int) -> ComplexImages:
    """Those ``count`` of a set that are most complex; the simplest of all never counts.

    Args:
        complexities: Of the set's images, ``(N,)``.
        count: How many, at least 1.
    """
    ordered = complexities.sort(descending=True).values
    # Between two images, so that no rounding moves one to the other side.
    above = float(ordered[count - 1 : count + 1].mean())
    return ComplexImages(count / len(ordered), above)


def share_of_images(batches: Sequence[Tensor], share: float) -> ComplexImages:
    """The most complex share of images.

    Args:
        batches: Batches of LR images, each ``(B, C, H, W)``.
        share: Above 0 and below 1.
    """
    complexities = torch.cat([image_complexity(batch) for batch in batches])
    return most_complex(complexities, max(round(share * len(complexities)), 1))
