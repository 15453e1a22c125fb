"""Whether calibration images hold anything that ranges could come of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.log import LOGGER

# Of the most complex image. Photographs have 5 to 60, a night shot that is all noise about 1.
LEAST_COMPLEXITY = 0.5


def warn_of_empty_images(batches: Sequence[Tensor]) -> None:
    """Warn where every image is of one colour, or nearly so.

    Ranges that come of such images clip all others. A few of them among others do no harm.

    Args:
        batches: Batches of LR images, each ``(B, C, H, W)`` in 0..1.
    """
    complexities = torch.cat([image_complexity(batch) for batch in batches])
    largest = float(complexities.max())
    if largest >= LEAST_COMPLEXITY:
        return
    LOGGER.warning(
        f"The {len(complexities)} calibration images hold next to nothing: the most complex of "
        f"them has a complexity of {largest:.2g}, photographs have 5 to 60. Ranges that come of "
        "them clip other images, and what is measured on them (a target, self-PSNR) says nothing "
        "of others; calibrate on images like those that the network is for, in 0..1"
    )
