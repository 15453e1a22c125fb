"""The images of a run, found again from its record.

They are those that it was validated on, or some that it was calibrated on where it wasn't.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from basicsr.data import build_dataset
from torch import Tensor

from adabm_basicsr.data.images import to_unit_range
from adabm_basicsr.data.patches import PatchDataset
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


class PictureSet:
    """A set of images, read one by one from a dataset of BasicSR's.

    Args:
        name: Of the set.
        dataset: Gives ``lq``, ``lq_path`` and, with ground truth, ``gt``.
        key: Differs between images of that name that aren't the same.
    """

    def __init__(self, name: str, dataset: Sequence[Mapping], key: str) -> None:
        self.name = name
        self.dataset = dataset
        self.key = key

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Picture]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> Picture:
        item = self.dataset[index]
        truth = None
        if "gt" in item:
            truth = item["gt"].unsqueeze(0)
        return Picture(Path(item["lq_path"]).stem, item["lq"].unsqueeze(0), truth)


@contextmanager
def directory_of(record: Mapping) -> Iterator[None]:
    """Work in the folder that the run was started in: paths in its options are relative to it.

    Raises:
        AdaBMError: It is gone.
    """
    folder = record["directory"]
    if not Path(folder).is_dir():
        raise AdaBMError(
            f"the folder {folder} that the run was started in is gone; its images are needed"
        )
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def picture_sets(record: Mapping) -> Iterator[PictureSet]:
    """The validation sets of a run, or images that it was calibrated on if it has none.

    Call it with the run's folder at work, see `directory_of`.

    Raises:
        AdaBMError: Images are gone.
    """
    datasets = record["options"]["datasets"]
    validated = False
    for phase, options in datasets.items():
        if phase.split("_")[0] != "train":
            validated = True
            key = _stamp(options)
            yield PictureSet(options["name"], build_dataset(deepcopy(options)), key)
    if not validated:
        yield _calibration_set(record, datasets["train"])


def _calibration_set(record: Mapping, options: Mapping) -> PictureSet:
    """Images spread evenly over those that a run was calibrated on."""
    dataset = calibration_dataset(record)
    count = min(len(dataset), MAX_CALIBRATION_IMAGES)
    images = []
    for number in range(count):
        index = number * len(dataset) // count
        pixels = torch.from_numpy(to_unit_range(dataset.images[index]))
        low = pixels.permute(2, 0, 1).contiguous()
        images.append({"lq": low, "lq_path": dataset.paths[index]})
    return PictureSet(options["name"], images, _stamp(options))


def calibration_dataset(record: Mapping) -> PatchDataset:
    """What a training run was calibrated on.

    Raises:
        AdaBMError: Images are gone.
    """
    options: dict[str, Any] = dict(record["options"]["datasets"]["train"])
    options["resume_at"] = None
    _stamp(options)
    if options.get("seed") is None:
        options["seed"] = record["seed"]
    return build_dataset(options)


def _stamp(options: Mapping) -> str:
    """A key of the files of a dataset: their names, sizes and times.

    Raises:
        AdaBMError: A folder is gone.
    """
    digest = hashlib.sha256()
    for root_key in ROOTS:
        if not options.get(root_key):
            continue
        root = Path(options[root_key])
        if not root.exists():
            raise AdaBMError(f"the images of {options.get('name')} in {root} are gone")
        for path in sorted(root.iterdir()):
            facts = path.stat()
            digest.update(repr((path.name, facts.st_size, facts.st_mtime_ns)).encode())
    return digest.hexdigest()
