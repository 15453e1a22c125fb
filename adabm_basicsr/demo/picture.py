"""The demo's picture: crops of LR, full precision, static, adaptive and ground truth side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from adabm_basicsr.files import atomic_path

CROP = 112  # pixels of the HR image
COLUMNS = ("LR (enlarged)", "full precision", "static", "adaptive", "ground truth")


def compare_crops(images: dict[str, dict[str, np.ndarray]], captions: dict[str, str], path: Path) -> None:
    """Draw one row per image, one column per version, each a crop where static quantization errs most.

    Args:
        images: For each image name its versions by column name, each ``(H, W, 3)`` uint8 RGB of one size.
        captions: A second line under the column names.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(images), len(COLUMNS), figsize=(2.3 * len(COLUMNS), 2.35 * len(images) + 0.4), squeeze=False
    )
    for index, versions in enumerate(images.values()):
        top, left = _worst_crop(versions)
        for axis, column in zip(axes[index], COLUMNS):
            axis.imshow(versions[column][top : top + CROP, left : left + CROP], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if index == 0:
                axis.set_title(f"{column}\n{captions.get(column, '')}", fontsize=10)
    figure.tight_layout(pad=0.4, w_pad=0.4, h_pad=0.4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def _worst_crop(versions: dict[str, np.ndarray]) -> tuple[int, int]:
    """Upper left corner of the crop where static quantization departs most from full precision."""
    difference = np.abs(versions["static"].astype(float) - versions["full precision"]).sum(2)
    errors = cv2.boxFilter(difference, -1, (CROP, CROP), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    height, width = errors.shape
    inside = errors[: max(height - CROP, 0) + 1, : max(width - CROP, 0) + 1]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return int(top), int(left)
