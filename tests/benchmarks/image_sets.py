"""Sets of test images on disk, in BasicSR's layout or in the one in which they are published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adabm_basicsr.data.images import list_images, read_image, to_unit_range

NAMES = ("Set5", "Set14", "B100", "Urban100")
# Folders of LR and HR images, and what LR images have behind the name of their HR image.
LAYOUTS = (
    ("LRbicx{scale}", "GTmod12", ""),
    ("LR_bicubic/X{scale}", "HR", "x{scale}"),
)


@dataclass(frozen=True)
class ImageSet:
    """LR images of a test set, and the HR images that belong to them.

    Args:
        name: One of `NAMES`.
        scale: Factor between LR and HR images.
        lr: Folder of LR images.
        hr: Folder of HR images.
        suffix: What names of LR images have behind those of HR images.
    """

    name: str
    scale: int
    lr: Path
    hr: Path
    suffix: str = ""

    def images(self) -> Iterator[torch.Tensor]:
        """Pixels, ``(1, 3, H, W)`` in 0..1, of each LR image."""
        return images_of(self.lr)

    def pairs(self) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """Each LR image, and its HR image as BasicSR's metrics take it.

        That is ``(1, 3, H, W)`` in 0..1 and ``(H, W, 3)`` uint8, BGR. HR images are cut to the
        size that the scale gives.
        """
        for path in list_images(self.lr):
            image = _pixels(path)
            name = path.stem.removesuffix(self.suffix) + path.suffix
            height = self.scale * image.shape[2]
            width = self.scale * image.shape[3]
            yield image, read_image(self.hr / name)[:height, :width, ::-1]


def find_set(folder: Path, name: str, scale: int) -> ImageSet | None:
    """The set ``name`` below a folder; None where it isn't."""
    for lr, hr, suffix in LAYOUTS:
        lr_folder = folder / name / lr.format(scale=scale)
        hr_folder = folder / name / hr
        if lr_folder.is_dir() and hr_folder.is_dir():
            return ImageSet(name, scale, lr_folder, hr_folder, suffix.format(scale=scale))
    return None


def find_sets(folder: Path, scale: int) -> list[ImageSet]:
    """All sets of `NAMES` below a folder; a line says which are left out.

    Raises:
        ValueError: None is there.
    """
    found = []
    for name in NAMES:
        image_set = find_set(folder, name, scale)
        if image_set is None:
            lr = LAYOUTS[0][0].format(scale=scale)
            other = LAYOUTS[1][0].format(scale=scale)
            print(f"{name} is left out: {folder / name} has neither {lr} nor {other}")
        else:
            found.append(image_set)
    if not found:
        raise ValueError(f"--sets {folder}: holds none of {', '.join(NAMES)} at x{scale}")
    return found


def images_of(folder: Path) -> Iterator[torch.Tensor]:
    """Pixels, ``(1, 3, H, W)`` in 0..1, of each image of a folder."""
    for path in list_images(folder):
        yield _pixels(path)


def _pixels(path: Path) -> torch.Tensor:
    pixels = torch.from_numpy(to_unit_range(read_image(path)))
    return pixels.permute(2, 0, 1).unsqueeze(0)


def to_bgr(image: torch.Tensor) -> np.ndarray:
    """An image ``(1, 3, H, W)`` in 0..1 as BasicSR's metrics take it: ``(H, W, 3)`` in 0..255."""
    pixels = (image.clamp(0, 1) * 255).round()
    return pixels[0].permute(1, 2, 0).flip(2).numpy()
