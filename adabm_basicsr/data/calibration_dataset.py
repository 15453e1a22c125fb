"""Low-resolution images alone: the data that calibration and fine-tuning need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from adabm_basicsr.data.images import decode_image, list_images, read_image
from adabm_basicsr.data.patches import (
    WHERE,
    PatchDataset,
    PatchOptions,
    data_root,
    read_options,
    spread,
)
from adabm_basicsr.data.sources import LMDB_LIST, backend_type, open_lmdb, read_keys, read_names
from adabm_basicsr.errors import check_positive
from adabm_basicsr.quantization.fields import option


@dataclass(frozen=True)
class CalibrationOptions(PatchOptions):
    """Options of `CalibrationDataset`."""

    num_images: int = option(
        "How many images to take at most, evenly spread over the sorted list.",
        100,
        minimum=1,
    )


@DATASET_REGISTRY.register()
class CalibrationDataset(PatchDataset):
    """Random patches of low-resolution images, no ground truth.

    Images are decoded once and kept in memory.

    Args:
        opt: `CalibrationOptions` and what every dataset has: ``name``, ``io_backend``
            (``{type: disk}`` or ``{type: lmdb}``), ``meta_info_file`` (a list of file names below
            ``dataroot_lq``, the first word of each line), ...

    Raises:
        AdaBMError: An option is unknown, or images are missing or broken; the message names them.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        options = read_options(CalibrationOptions, opt)
        super().__init__(opt, options)
        count = check_positive(f"{WHERE}: num_images", options.num_images)
        names = spread(_image_names(opt), count)
        self.images = _read_images(opt, names, self.channels, self.max_pixels)
        self.paths = [str(name) for name in names]

    def _draw(self, index: int, random: np.random.Generator) -> np.ndarray:
        return self.images[index]


def _image_names(opt: Mapping[str, Any]) -> list[Path]:
    """Paths of the images, or keys for an LMDB."""
    root = data_root(opt)
    list_file = opt.get("meta_info_file")
    if backend_type(WHERE, opt.get("io_backend")) == "lmdb":
        return [Path(key) for key in read_keys(list_file or root / LMDB_LIST, root)]
    if list_file:
        return [root / name for name in read_names(list_file, root)]
    return list_images(root, "dataroot_lq")


def _read_images(
    opt: Mapping[str, Any], names: list[Path], channels: int, max_pixels: int
) -> list[np.ndarray]:
    if backend_type(WHERE, opt.get("io_backend")) == "disk":
        return [read_image(name, channels, max_pixels) for name in names]
    root = opt["dataroot_lq"]
    images = []
    with open_lmdb(root) as read:
        for name in names:
            content = read(str(name))
            images.append(decode_image(content, f"{root}:{name}", channels, max_pixels))
    return images
