"""The demo's images: photographs inside scikit-image's wheel, and their bicubic LR versions."""

from __future__ import annotations

from pathlib import Path

import cv2
import skimage

from adabm_basicsr.data.images import decode_image
from adabm_basicsr.data.prepare import prepare

CALIBRATION = (
    "chelsea.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip
VALIDATION = ("astronaut.png", "coffee.png")
SCALE = 4


def make_datasets(root: Path) -> None:
    """Write ``calibration/LRbicx4`` and ``validation/{GTmod4, LRbicx4}`` below ``root``, in BasicSR's layout."""
    source = Path(skimage.__file__).parent / "data"
    _copy_cropped(source, CALIBRATION, root / "calibration" / "HR")
    _copy_cropped(source, VALIDATION, root / "validation" / "GTmod4")
    prepare(root / "calibration" / "HR", SCALE, root / "calibration" / "LRbicx4")
    prepare(root / "validation" / "GTmod4", SCALE, root / "validation" / "LRbicx4")


def _copy_cropped(source: Path, names: tuple[str, ...], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in names:
        image = decode_image((source / name).read_bytes(), name)
        height, width = (side - side % SCALE for side in image.shape[:2])
        cv2.imwrite(str(folder / f"{Path(name).stem}.png"), cv2.cvtColor(image[:height, :width], cv2.COLOR_RGB2BGR))
