"""The images of a run, found again from its record.

They are those that it was validated on, or some that it was calibrated on where it wasn't.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from basicsr.data import build_dataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adabm_basicsr.data.clip_dataset import ClipCalibrationDataset
from adabm_basicsr.data.images import to_unit_range
from adabm_basicsr.data.patches import PatchDataset
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.bit_mapping import frames_of
from adabm_basicsr.runs.frames import Place, find_place, gives_clips, judged_frames

# Shown of a run that wasn't validated.
MAX_CALIBRATION_IMAGES = 6
MAX_CALIBRATION_CLIPS = 2
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

    @property
    def has_truth(self) -> bool:
        """Whether there is ground truth."""
        return self[0].truth is not None

    def __iter__(self) -> Iterator[Picture]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> Picture:
        item = self.dataset[index]
        truth = None
        if "gt" in item:
            truth = item["gt"].unsqueeze(0)
        return Picture(Path(item["lq_path"]).stem, item["lq"].unsqueeze(0), truth)


@dataclass
class Clip:
    """A clip of a set, or the window of one of its frames.

    Attributes:
        place: Which frames it is judged by.
        low: LR frames, ``(1, T, C, H, W)`` in 0..1.
        truth: Ground truth, a clip or the middle frame; None if there is none.
    """

    place: Place
    low: Tensor
    truth: Tensor | None = None

    def judged(self, frames: Tensor) -> Tensor:
        """Of a clip ``(1, T, C, H, W)`` or of one frame, the frames that are judged."""
        if self.truth is None:
            return frames_of(frames)
        return judged_frames(frames, self.truth)


class ClipSet:
    """A set of clips.

    Args:
        name: Of the set.
        count: Clips in it, or windows.
        read: Begins to read them.
        key: Differs between clips of that name that aren't the same.
        has_truth: Whether there is ground truth.
    """

    def __init__(
        self,
        name: str,
        count: int,
        read: Callable[[], Iterator[Clip]],
        key: str,
        has_truth: bool,
    ) -> None:
        self.name = name
        self.count = count
        self.read = read
        self.key = key
        self.has_truth = has_truth

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Clip]:
        return self.read()


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


def picture_sets(record: Mapping) -> Iterator[PictureSet | ClipSet]:
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
            dataset = build_dataset(deepcopy(options))
            if gives_clips(dataset):
                read = partial(_read_clips, dataset)
                yield ClipSet(options["name"], len(dataset), read, key, has_truth=True)
            else:
                yield PictureSet(options["name"], dataset, key)
    if not validated:
        yield _calibration_set(record, datasets["train"])


def _read_clips(dataset: Dataset) -> Iterator[Clip]:
    for item in DataLoader(dataset):
        yield Clip(find_place(dataset, item), item["lq"], item["gt"])


def _calibration_set(record: Mapping, options: Mapping) -> PictureSet | ClipSet:
    """Images or clips spread evenly over those that a run was calibrated on."""
    dataset = calibration_dataset(record)
    if isinstance(dataset, ClipCalibrationDataset):
        count = min(len(dataset.clips), MAX_CALIBRATION_CLIPS)
        read = partial(_read_calibration_clips, dataset, count)
        return ClipSet(options["name"], count, read, _stamp(options), has_truth=False)
    count = min(len(dataset), MAX_CALIBRATION_IMAGES)
    images = []
    for number in range(count):
        index = number * len(dataset) // count
        pixels = torch.from_numpy(to_unit_range(dataset.images[index]))
        low = pixels.permute(2, 0, 1).contiguous()
        images.append({"lq": low, "lq_path": dataset.paths[index]})
    return PictureSet(options["name"], images, _stamp(options))


def _read_calibration_clips(dataset: ClipCalibrationDataset, count: int) -> Iterator[Clip]:
    """The first frames of some clips, as many as it is calibrated on at once."""
    for number in range(count):
        index = number * len(dataset.clips) // count
        pixels = to_unit_range(dataset.clips[index][: dataset.frames])
        low = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        name = Path(dataset.paths[index]).stem
        yield Clip(Place(name, 0, name, None), low.unsqueeze(0))


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
        # Those of clips lie in folders.
        for path in sorted(root.rglob("*")):
            facts = path.stat()
            digest.update(repr((path.name, facts.st_size, facts.st_mtime_ns)).encode())
    return digest.hexdigest()
