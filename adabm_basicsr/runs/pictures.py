"""Pictures of a validation set by each variant of a network, kept in the run's folder.

pictures/SET/VARIANT/NAME.png    pictures/SET/VARIANT/figures.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from adabm_basicsr.data.images import read_image
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import atomic_path
from adabm_basicsr.runs.record import write_json

FOLDER = "pictures"
FIGURES = "figures.json"
# Kept beside the variants of the network.
TRUTH = "ground_truth"
LOW = "low_resolution"


class PictureStore:
    """Pictures and their metrics, kept with a key of what they were made from.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def forget(self, name: str, variant: str) -> None:
        """Remove the pictures of a set by one variant."""
        shutil.rmtree(self.folder / name / variant, ignore_errors=True)

    def path(self, name: str, variant: str, image: str) -> Path:
        """Where the picture of an image of set ``name`` is kept."""
        return self.folder / name / variant / f"{image}.png"

    def names(self, name: str, variant: str) -> list[str]:
        """Names of a set's images that are kept."""
        return sorted(path.stem for path in (self.folder / name / variant).glob("*.png"))

    def keep(self, name: str, variant: str, image: str, pixels: np.ndarray) -> None:
        """Keep a picture, RGB ``(H, W, 3)`` or grey ``(H, W, 1)`` uint8."""
        path = self.path(name, variant, image)
        opencv_pixels = np.ascontiguousarray(pixels[..., ::-1])
        with atomic_path(path) as temporary:
            if not cv2.imwrite(str(temporary), opencv_pixels):
                raise OSError(f"OpenCV could not write {path.name}")

    def read(self, name: str, variant: str, image: str) -> np.ndarray | None:
        """A picture, RGB ``(H, W, 3)`` uint8; None if it isn't kept."""
        path = self.path(name, variant, image)
        if not path.is_file():
            return None
        return read_image(path)

    def sets(self) -> list[str]:
        """Names of the sets that there are pictures of."""
        return sorted(path.name for path in self.folder.glob("*") if path.is_dir())

    def keep_metrics(
        self, name: str, variant: str, key: str, metrics: Mapping, facts: Mapping | None = None
    ) -> None:
        """Keep the metrics of a set, all of whose pictures are kept, and further ``facts``."""
        content = {
            "key": key,
            "metrics": metrics,
            "images": self.names(name, variant),
            "facts": facts,
        }
        write_json(self.folder / name / variant / FIGURES, content)

    def metrics(self, name: str, variant: str, key: str | None = None) -> dict[str, Any] | None:
        """Metrics of a set's pictures.

        Args:
            name: Of the set.
            variant: Of the network.
            key: What the pictures must have been made from; by default anything.

        Returns:
            None if there are no such pictures, or not all of them.

        Raises:
            AdaBMError: The metrics can't be read.
        """
        kept = self._read(name, variant)
        if kept is None:
            return None
        if key is not None and key != kept["key"]:
            return None
        return kept["metrics"]

    def facts(self, name: str, variant: str) -> dict[str, Any] | None:
        """The further facts that `keep_metrics` was given; None if there are none."""
        kept = self._read(name, variant)
        if kept is None:
            return None
        return kept["facts"]

    def _read(self, name: str, variant: str) -> dict[str, Any] | None:
        path = self.folder / name / variant / FIGURES
        if not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AdaBMError(f"{path} cannot be read: {error}") from error
        if set(kept["images"]) != set(self.names(name, variant)):
            return None
        return kept


def to_pixels(image: Tensor) -> np.ndarray:
    """``(1, C, H, W)`` in 0..1 as ``(H, W, C)`` uint8 RGB, rounded as BasicSR does."""
    levels = (image[0].clamp(0, 1) * 255).round().byte()
    return levels.permute(1, 2, 0).cpu().numpy()
