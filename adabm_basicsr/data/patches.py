"""Random patches of low-resolution images or clips, no ground truth: what both have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor
from torch.utils.data import Dataset

from adabm_basicsr.data.headers import MAX_PIXELS, OPENCV_PIXELS, check_max_pixels
from adabm_basicsr.data.images import to_unit_range
from adabm_basicsr.errors import OptionError, check_keys, check_positive
from adabm_basicsr.quantization.fields import option

WHERE = "datasets: train"
CALIBRATION_EPOCH = -1  # calibration takes crops of its own, before those of the first epoch
CHANCE = 0.5  # of each flip, of transposition and of reversal

T = TypeVar("T")


@dataclass(frozen=True)
class PatchOptions:
    """Options of `PatchDataset`; each field's metadata says in a sentence what it does."""

    dataroot_lq: str | None = option(
        "Folder of low-resolution images, or an LMDB (io_backend: {type: lmdb}).",
        required=True,
    )
    lq_size: int | None = option(
        "Side of the patches in LR pixels; smaller images are mirrored up to it.",
        required=True,
        minimum=1,
    )
    max_pixels: int = option(
        "Larger images are rejected: they may be made to fill the memory.",
        MAX_PIXELS,
        minimum=1,
        maximum=OPENCV_PIXELS,
    )
    channels: int = option(
        "3 for RGB networks, 1 for grey ones.",
        3,
        choices=(1, 3),
        valid="1 (grey) or 3 (RGB)",
    )
    use_hflip: bool = option("Whether patches are flipped at random.", True)
    use_rot: bool = option("Whether patches are flipped vertically and transposed at random.", True)
    dataset_enlarge_ratio: int = option(
        "Patches of each image or clip per epoch and in calibration.",
        1,
        minimum=1,
    )
    fixed_crops: bool | None = option(
        "Whether all epochs see the same patches, so that full precision is computed once for "
        "each; the recipe's own by default.",
    )
    seed: int | None = option("Seed of crops and their order; manual_seed by default.")


# Keys that every dataset has, and those that BasicSR and a resumed run add.
COMMON_KEYS = (
    "name",
    "type",
    "meta_info_file",
    "io_backend",
    "batch_size_per_gpu",
    "num_worker_per_gpu",
    "prefetch_mode",
    "num_prefetch_queue",
    "pin_memory",
    "persistent_workers",
)
ADDED_KEYS = ("phase", "scale", "resume_at")

Options = TypeVar("Options", bound=PatchOptions)


def read_options(kind: type[Options], opt: Mapping[str, Any]) -> Options:
    """The options that an option file gives a dataset.

    Args:
        kind: Their dataclass.
        opt: What the file says, keys that every dataset has among it.

    Raises:
        OptionError: A key is unknown.
    """
    own = [field.name for field in fields(kind)]
    check_keys(WHERE, opt, [*own, *COMMON_KEYS, *ADDED_KEYS])
    given = {key: opt[key] for key in own if opt.get(key) is not None}
    return kind(**given)


def data_root(opt: Mapping[str, Any]) -> Path:
    """Where the images or clips of a dataset are.

    Raises:
        OptionError: Its options don't say so.
    """
    if opt.get("dataroot_lq") is None:
        raise OptionError(f"{WHERE}: dataroot_lq is missing")
    return Path(opt["dataroot_lq"])


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, evenly spread: neighbours often show the same scene."""
    if count >= len(items):
        return list(items)
    return [items[int(i * len(items) / count)] for i in range(count)]


class PatchDataset(Dataset, ABC):
    """Random patches.

    A patch depends on (seed, epoch, index) alone, so that a resumed or distributed run sees what a
    plain one sees. The epoch is part of the key: item ``round * len(self) + index``, where each
    epoch has ``dataset_enlarge_ratio`` rounds.

    Args:
        opt: All options of the dataset.
        options: Those that are its own, read from ``opt``.

    Attributes:
        unit: What patches are cropped of, in the plural.
        paths: Of the images or clips.
        images: The images ``(H, W, C)``; of clips their middle frames.

    Raises:
        OptionError: An option is out of range.
    """

    unit = "images"
    paths: list[str]
    images: list[np.ndarray]

    def __init__(self, opt: dict[str, Any], options: PatchOptions) -> None:
        super().__init__()
        self.opt = opt
        self.size = check_positive(f"{WHERE}: lq_size", options.lq_size)
        self.channels = options.channels
        if self.channels not in (1, 3):
            raise OptionError(f"{WHERE}: channels: {self.channels!r} is not 1 (grey) or 3 (RGB)")
        self.rounds = check_positive(
            f"{WHERE}: dataset_enlarge_ratio", options.dataset_enlarge_ratio
        )
        self.fixed = _are_crops_fixed(options)
        self.hflip = options.use_hflip
        self.rotation = options.use_rot
        self.seed = _seed(options)
        self.max_pixels = check_max_pixels(f"{WHERE}: max_pixels", options.max_pixels)
        if self.size**2 > self.max_pixels:
            raise OptionError(
                f"{WHERE}: lq_size: {self.size}: "
                f"patches have more pixels than max_pixels {self.max_pixels} allows"
            )

    @abstractmethod
    def _draw(self, index: int, random: np.random.Generator) -> np.ndarray:
        """What a patch is cropped of: ``(H, W, C)``, or ``(T, H, W, C)``."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int) -> dict[str, Any]:
        """A patch.

        Args:
            key: ``round * len(self) + index``.

        Returns:
            ``lq``, a tensor ``(C, lq_size, lq_size)``, of clips ``(T, C, lq_size, lq_size)``, RGB
            in 0..1; ``lq_path``, the path of the image or clip; ``patch_key``, the same for the
            same patch, if crops are fixed.
        """
        if self.fixed and key >= 0:
            key %= self.rounds * len(self)
        round_, index = divmod(key, len(self))
        stream = (self.seed % 2**32, round_ - CALIBRATION_EPOCH * self.rounds, index)
        random = np.random.default_rng(stream)
        cropped = self._crop(self._draw(index, random), random)
        patch = to_unit_range(self._augment(cropped, random))
        channels_first = np.ascontiguousarray(np.moveaxis(patch, -1, -3))
        item = {"lq": torch.from_numpy(channels_first), "lq_path": self.paths[index]}
        if self.fixed:
            item["patch_key"] = key
        return item

    def items_per_process(self, world_size: int) -> int:
        """Items of an epoch for each process: those of whole batches of all processes together."""
        batch = self.opt.get("batch_size_per_gpu", 1)
        return self.rounds * len(self) // (batch * world_size) * batch

    def epoch_keys(self, epoch: int, rank: int, world_size: int) -> list[int]:
        """Keys of this process's items in ``epoch``, in random order.

        Those that a resumed run has had are left out. One process would have the same items in the
        same batches, of which each process takes a part.
        """
        total = self.rounds * len(self)
        batch = self.opt.get("batch_size_per_gpu", 1)
        order = np.random.default_rng((self.seed % 2**32, epoch)).permutation(total)
        order = order[: self.items_per_process(world_size) * world_size]
        own = order.reshape(-1, world_size, batch)[:, rank]
        keys = [epoch * total + int(offset) for offset in own.flat]
        resumed = self.opt.get("resume_at")
        if not resumed or resumed["epoch"] != epoch:
            return keys
        items_per_iteration = batch * resumed["gpus"]
        iterations_before = epoch * (len(keys) // items_per_iteration)
        had = (resumed["iter"] - iterations_before) * items_per_iteration
        return keys[had:]

    def calibration_batches(self, batch_size: int) -> list[Tensor]:
        """Patches of everything in batches of ``batch_size``, each ``(B, *)`` of ``lq``."""
        total = self.rounds * len(self)
        first = CALIBRATION_EPOCH * total
        patches = [self[first + offset]["lq"] for offset in range(total)]
        return list(torch.stack(patches).split(batch_size))

    def _crop(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        *before, height, width, _ = image.shape
        below = max(self.size - height, 0)
        beside = max(self.size - width, 0)
        if below or beside:
            margins = [(0, 0)] * len(before) + [(0, below), (0, beside), (0, 0)]
            image = np.pad(image, margins, mode="symmetric")
        top = random.integers(max(height - self.size, 0) + 1)
        left = random.integers(max(width - self.size, 0) + 1)
        return image[..., top : top + self.size, left : left + self.size, :]

    def _augment(self, patch: np.ndarray, random: np.random.Generator) -> np.ndarray:
        hflip, vflip, transpose = random.random(3) < CHANCE
        if hflip and self.hflip:
            patch = patch[..., ::-1, :]
        if vflip and self.rotation:
            patch = patch[..., ::-1, :, :]
        if transpose and self.rotation:
            patch = patch.swapaxes(-3, -2)
        return patch


def _are_crops_fixed(options: PatchOptions) -> bool:
    fixed = options.fixed_crops
    if fixed is None:
        return False
    if not isinstance(fixed, bool):
        raise OptionError(f"{WHERE}: fixed_crops: {fixed!r} is not true or false")
    return fixed


def _seed(options: PatchOptions) -> int:
    if options.seed is not None:
        return options.seed
    # BasicSR seeds torch with manual_seed + rank; patches must not depend on the rank.
    rank, _ = get_dist_info()
    return torch.initial_seed() - rank
