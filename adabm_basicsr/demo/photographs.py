"""The demo's images: photographs inside scikit-image's wheel, and their bicubic LR versions."""

from __future__ import annotations

import shutil
from pathlib import Path

import skimage

from adabm_basicsr.data.prepare import prepare

CALIBRATION = (
    "chelsea.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
VALIDATION = ("astronaut.png", "coffee.png")
SCALE = 4


def make_datasets(root: Path) -> None:
    """Write ``calibration`` and ``validation``, each with the folders ``GTmod4`` and ``LRbicx4``.

    Args:
        root: The folder to write them to, which has neither yet.
    """
    _make_dataset(root / "calibration", CALIBRATION)
    _make_dataset(root / "validation", VALIDATION)


def _make_dataset(folder: Path, names: tuple[str, ...]) -> None:
    source = Path(skimage.__file__).parent / "data"
    originals = folder / "original"
    originals.mkdir(parents=True)
    for name in names:
        shutil.copyfile(source / name, originals / name)
    prepare(originals, SCALE, folder / "LRbicx4", mod=folder / "GTmod4")
