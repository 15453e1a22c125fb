"""Which of the metrics that the options ask for a validation set can have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor

from adabm_basicsr.errors import AdaBMError

SELF_PSNR, NIQE = "calculate_self_psnr", "calculate_niqe"
NIQE_BLOCK = 96  # pixels; the statistics of fewer than two blocks have no covariance


def split_metrics(asked: Mapping[str, Mapping], has_truth: bool) -> tuple[dict[str, Mapping], dict[str, Mapping]]:
    """The metrics that judge a set's images, and those that compare with full precision.

    Args:
        asked: Options of ``val: metrics:``.
        has_truth: Whether the set has ground truth; without it metrics that judge an image alone are left, as NIQE.
    """
    own = {name: options for name, options in asked.items() if options["type"] == SELF_PSNR}
    judged = {name: options for name, options in asked.items() if name not in own}
    if not has_truth:
        judged = {name: options for name, options in judged.items() if not needs_truth(options["type"])}
    return judged, own


def needs_truth(kind: str) -> bool:
    """Whether a registered metric compares with a second image."""
    return "img2" in inspect.signature(METRIC_REGISTRY.get(kind)).parameters


def check_size(name: str, output: Tensor, metrics: Mapping[str, Mapping] | None) -> None:
    """Raise `AdaBMError` if the image ``name``, ``(B, C, H, W)``, is too small for one of ``metrics``."""
    for metric, options in (metrics or {}).items():
        sides = [side - 2 * options.get("crop_border", 0) for side in output.shape[2:]]
        if options["type"] == NIQE and (sides[0] // NIQE_BLOCK) * (sides[1] // NIQE_BLOCK) < 2:
            raise AdaBMError(
                f"val: metrics: {metric}: NIQE needs two blocks of {NIQE_BLOCK} x {NIQE_BLOCK} pixels; without its "
                f"border {name} has {sides[1]} x {sides[0]} pixels"
            )
