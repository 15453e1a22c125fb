"""Which of the metrics that the options ask for a validation set can have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from basicsr.utils.registry import METRIC_REGISTRY

SELF_PSNR = "calculate_self_psnr"


def split_metrics(
    asked: Mapping[str, Mapping], has_truth: bool
) -> tuple[dict[str, Mapping], dict[str, Mapping]]:
    """Split metrics into those that judge images and those that compare with full precision.

    Args:
        asked: Options of ``val: metrics:``, by the metrics' names.
        has_truth: Whether the set has ground truth. Without it, of the first kind only those are
            left that judge an image alone, as NIQE does.

    Returns:
        Options of the first and of the second kind, by name.
    """
    judging = {}
    comparing = {}
    for name, options in asked.items():
        if options["type"] == SELF_PSNR:
            comparing[name] = options
        elif has_truth or not needs_truth(options["type"]):
            judging[name] = options
    return judging, comparing


def needs_truth(kind: str) -> bool:
    """Whether a registered metric compares with a second image."""
    metric = METRIC_REGISTRY.get(kind)
    return "img2" in inspect.signature(metric).parameters
