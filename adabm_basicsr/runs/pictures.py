"""Pictures of a validation set by each version of a network, kept in the run's folder so that they are made once.

pictures/SET/VERSION/NAME.png    pictures/SET/VERSION/figures.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from adabm_basicsr.data.images import read_image
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import atomic_path
from adabm_basicsr.runs.record import write_json

FOLDER = "pictures"
FIGURES = "figures.json"
TRUTH, LOW = "ground_truth", "low_resolution"  # beside the versions of the network


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

    def path(self, name: str, version: str, image: str) -> Path:
        """Where the picture of an image of set ``name`` is kept."""
        return self.folder / name / version / f"{image}.png"

    def names(self, name: str, version: str) -> list[str]:
        """Names of a set's images that are kept."""
        return sorted(path.stem for path in (self.folder / name / version).glob("*.png"))

    def keep(self, name: str, version: str, image: str, pixels: np.ndarray) -> None:
        """Keep a picture, RGB ``(H, W, 3)`` or grey ``(H, W, 1)`` uint8."""
        path = self.path(name, version, image)
        with atomic_path(path) as temporary:
            if not cv2.imwrite(str(temporary), np.ascontiguousarray(pixels[..., ::-1])):
                raise OSError(f"OpenCV could not write {path.name}")

    def read(self, name: str, version: str, image: str) -> np.ndarray | None:
        """A picture, RGB ``(H, W, 3)`` uint8; None if it isn't kept."""
        path = self.path(name, version, image)
        return read_image(path) if path.is_file() else None

    def sets(self) -> list[str]:
        """Names of the sets that there are pictures of."""
        return sorted(path.name for path in self.folder.glob("*") if path.is_dir())

    def keep_metrics(
        self, name: str, version: str, key: str, metrics: Mapping, facts: Mapping | None = None
    ) -> None:
        """Keep the metrics of a set, all of whose pictures are kept, and further ``facts``."""
        content = {
            "key": key,
            "metrics": metrics,
            "images": self.names(name, version),
            "facts": facts,
        }
        write_json(self.folder / name / version / FIGURES, content)

    def metrics(self, name: str, version: str, key: str | None = None) -> dict | None:
        """Metrics of a set's pictures; None if there are none, or none that were made from what ``key`` says.

        Raises:
            AdaBMError: They can't be read.
        """
        kept = self._read(name, version)
        return kept["metrics"] if kept is not None and key in (None, kept["key"]) else None

    def facts(self, name: str, version: str) -> dict | None:
        """The further facts that `keep_metrics` was given; None if there are none."""
        kept = self._read(name, version)
        return None if kept is None else kept["facts"]

    def _read(self, name: str, version: str) -> dict | None:
        path = self.folder / name / version / FIGURES
        if not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AdaBMError(f"{path} cannot be read: {error}") from error
        return kept if set(kept["images"]) == set(self.names(name, version)) else None


def to_pixels(image: Tensor) -> np.ndarray:
    """``(1, C, H, W)`` in 0..1 as ``(H, W, C)`` uint8 RGB, rounded as BasicSR does."""
    return (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
