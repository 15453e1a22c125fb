"""The demo's images: photographs inside scikit-image's wheel, and their bicubic LR versions."""

from __future__ import annotations

import shutil
from pathlib import Path

import skimage

from adabm_basicsr.data.prepare import prepare

CALIBRATION = (
    "chelsea.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip
VALIDATION = ("astronaut.png", "coffee.png")
SCALE = 4


def make_datasets(root: Path) -> None:
    """Write ``calibration`` and ``validation`` below ``root``, each with ``GTmod4`` and ``LRbicx4``."""
    source = Path(skimage.__file__).parent / "data"
    for kind, names in (("calibration", CALIBRATION), ("validation", VALIDATION)):
        folder = root / kind
        (folder / "original").mkdir(parents=True)
        for name in names:
            shutil.copyfile(source / name, folder / "original" / name)
        prepare(folder / "original", SCALE, folder / "LRbicx4", mod=folder / "GTmod4")
