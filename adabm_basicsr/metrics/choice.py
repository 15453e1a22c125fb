"""Which of the metrics that the options ask for a validation set can have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from basicsr.utils.registry import METRIC_REGISTRY

SELF_PSNR = "calculate_self_psnr"


def split_metrics(
    asked: Mapping[str, Mapping], has_truth: bool
) -> tuple[dict[str, Mapping], dict[str, Mapping]]:
    """The metrics that judge a set's images, and those that compare with full precision.

    Args:
        asked: Options of ``val: metrics:``.
        has_truth: Whether the set has ground truth; without it metrics that judge an image alone are left, as NIQE.
    """
    own = {name: options for name, options in asked.items() if options["type"] == SELF_PSNR}
    judged = {name: options for name, options in asked.items() if name not in own}
    if not has_truth:
        judged = {
            name: options for name, options in judged.items() if not needs_truth(options["type"])
        }
    return judged, own


def needs_truth(kind: str) -> bool:
    """Whether a registered metric compares with a second image."""
    return "img2" in inspect.signature(METRIC_REGISTRY.get(kind)).parameters
