"""The images that a run was validated on, or calibrated on where it wasn't, found again from its record."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from basicsr.data import build_dataset
from torch import Tensor

from adabm_basicsr.data.calibration_dataset import CalibrationDataset
from adabm_basicsr.data.images import to_unit_range
from adabm_basicsr.errors import AdaBMError

MAX_CALIBRATION_IMAGES = 6  # shown of a run that wasn't validated
ROOTS = ("dataroot_lq", "dataroot_gt")


@dataclass
class Picture:
    """An image of a set.

    Attributes:
        name: Of its file, without the ending.
        low: LR image, ``(1, C, H, W)`` in 0..1.
        truth: Ground truth, ``(1, C, sH, sW)``; None if there is none.
    """

    name: str
    low: Tensor
    truth: Tensor | None = None


class PictureSet(Sequence[Picture]):
    """A set of images, read one by one from a dataset of BasicSR's.

    Args:
        name: Of the set.
        dataset: Gives ``lq``, ``lq_path`` and, with ground truth, ``gt``.
        key: Tells the images from others of that name.
    """

    def __init__(self, name: str, dataset: Sequence[Mapping], key: str) -> None:
        self.name, self.dataset, self.key = name, dataset, key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Picture:
        if index >= len(self):
            raise IndexError(index)  # datasets needn't; loops over them end by it
        item = self.dataset[index]
        truth = item["gt"].unsqueeze(0) if "gt" in item else None
        return Picture(Path(item["lq_path"]).stem, item["lq"].unsqueeze(0), truth)


@contextmanager
def directory_of(record: Mapping) -> Iterator[None]:
    """Work below the folder that the run was started in, which the paths in its options are relative to."""
    before = Path.cwd()
    if not Path(record["directory"]).is_dir():
        raise AdaBMError(
            f"the folder {record['directory']} that the run was started in is gone; its images are needed"
        )
    os.chdir(record["directory"])
    try:
        yield
    finally:
        os.chdir(before)


def picture_sets(record: Mapping) -> Iterator[PictureSet]:
    """The validation sets of a run, or images that it was calibrated on if it has none; with its folder at work.

    Raises:
        AdaBMError: Images are gone.
    """
    found = {
        phase: o
        for phase, o in record["options"]["datasets"].items()
        if phase.split("_")[0] != "train"
    }
    for options in found.values():
        key = _stamp(options)
        yield PictureSet(options["name"], build_dataset(deepcopy(options)), key)
    if not found:
        options = record["options"]["datasets"]["train"]
        dataset, key = calibration_dataset(record), _stamp(options)
        count = min(len(dataset), MAX_CALIBRATION_IMAGES)
        chosen = [i * len(dataset) // count for i in range(count)]
        yield PictureSet(options["name"], [_whole_image(dataset, i) for i in chosen], key)


def _whole_image(dataset: CalibrationDataset, index: int) -> dict:
    image = torch.from_numpy(to_unit_range(dataset.images[index])).permute(2, 0, 1).contiguous()
    return {"lq": image, "lq_path": dataset.paths[index]}


def calibration_dataset(record: Mapping) -> CalibrationDataset:
    """What a training run was calibrated on."""
    options = {**record["options"]["datasets"]["train"], "resume_at": None}
    _stamp(options)
    if options.get("seed") is None:
        options["seed"] = record["seed"]
    return CalibrationDataset(options)


def _stamp(options: Mapping) -> str:
    """Tells the files of a dataset from others: their names, sizes and times.

    Raises:
        AdaBMError: A folder is gone.
    """
    digest = hashlib.sha256()
    for root in [Path(options[key]) for key in ROOTS if options.get(key)]:
        if not root.exists():
            raise AdaBMError(f"the images of {options.get('name')} in {root} are gone")
        for path in sorted(root.iterdir()):
            digest.update(repr((path.name, path.stat().st_size, path.stat().st_mtime_ns)).encode())
    return digest.hexdigest()
