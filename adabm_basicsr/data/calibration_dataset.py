"""Low-resolution images alone: the data that calibration and fine-tuning need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from adabm_basicsr.data.headers import MAX_PIXELS, OPENCV_PIXELS, check_max_pixels
from adabm_basicsr.data.images import decode_image, list_images, read_image, to_unit_range
from adabm_basicsr.data.sources import LMDB_LIST, backend_type, open_lmdb, read_keys, read_names
from adabm_basicsr.errors import OptionError, check_keys, check_positive
from adabm_basicsr.quantization.fields import option

WHERE = "datasets: train"
CALIBRATION_EPOCH = -1  # calibration takes crops of its own, before those of the first epoch
CHANCE = 0.5  # of each flip and of transposition


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of `CalibrationDataset`; each field's metadata says in a sentence what it does."""

    dataroot_lq: str | None = option(
        "Folder of low-resolution images, or an LMDB (io_backend: {type: lmdb}).",
        required=True,
    )
    lq_size: int | None = option(
        "Side of the patches in LR pixels; smaller images are mirrored up to it.",
        required=True,
        minimum=1,
    )
    num_images: int = option(
        "How many images to take at most, evenly spread over the sorted list.",
        100,
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
        "Patches of each image per epoch and in calibration.",
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


@DATASET_REGISTRY.register()
class CalibrationDataset(Dataset):
    """Random patches of low-resolution images, no ground truth.

    A patch depends on (seed, epoch, index) alone, so that a resumed or distributed run sees what a
    plain one sees. The epoch is part of the key: item ``round * len(self) + index``, where each
    epoch has ``dataset_enlarge_ratio`` rounds. Images are decoded once and kept in memory.

    Args:
        opt: `CalibrationOptions` and what every dataset has: ``name``, ``io_backend``
            (``{type: disk}`` or ``{type: lmdb}``), ``meta_info_file`` (a list of file names below
            ``dataroot_lq``, the first word of each line), ...

    Raises:
        AdaBMError: An option is unknown, or images are missing or broken; the message names them.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__()
        options = _read_options(opt)
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
        count = check_positive(f"{WHERE}: num_images", options.num_images)
        names = _spread(_image_names(opt), count)
        max_pixels = check_max_pixels(f"{WHERE}: max_pixels", options.max_pixels)
        if self.size**2 > max_pixels:
            raise OptionError(
                f"{WHERE}: lq_size: {self.size}: "
                f"patches have more pixels than max_pixels {max_pixels} allows"
            )
        self.images = _read_images(opt, names, self.channels, max_pixels)
        self.paths = [str(name) for name in names]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int) -> dict[str, Any]:
        """A patch.

        Args:
            key: ``round * len(self) + index``.

        Returns:
            ``lq``, a tensor ``(C, lq_size, lq_size)``, RGB in 0..1; ``lq_path``, the image's path;
            ``patch_key``, the same for the same patch, if crops are fixed.
        """
        if self.fixed and key >= 0:
            key %= self.rounds * len(self)
        round_, index = divmod(key, len(self))
        stream = (self.seed % 2**32, round_ - CALIBRATION_EPOCH * self.rounds, index)
        random = np.random.default_rng(stream)
        cropped = self._crop(self.images[index], random)
        patch = to_unit_range(self._augment(cropped, random))
        channels_first = np.ascontiguousarray(patch.transpose(2, 0, 1))
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
        """Patches of all images in batches of ``batch_size``, each ``(B, C, lq_size, lq_size)``."""
        total = self.rounds * len(self)
        first = CALIBRATION_EPOCH * total
        patches = [self[first + offset]["lq"] for offset in range(total)]
        return list(torch.stack(patches).split(batch_size))

    def _crop(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        below = max(self.size - height, 0)
        beside = max(self.size - width, 0)
        if below or beside:
            image = np.pad(image, ((0, below), (0, beside), (0, 0)), mode="symmetric")
        top = random.integers(max(height - self.size, 0) + 1)
        left = random.integers(max(width - self.size, 0) + 1)
        return image[top : top + self.size, left : left + self.size]

    def _augment(self, patch: np.ndarray, random: np.random.Generator) -> np.ndarray:
        hflip, vflip, transpose = random.random(3) < CHANCE
        if hflip and self.hflip:
            patch = patch[:, ::-1]
        if vflip and self.rotation:
            patch = patch[::-1]
        if transpose and self.rotation:
            patch = patch.transpose(1, 0, 2)
        return patch


def _read_options(opt: Mapping[str, Any]) -> CalibrationOptions:
    own = [field.name for field in fields(CalibrationOptions)]
    check_keys(WHERE, opt, [*own, *COMMON_KEYS, *ADDED_KEYS])
    given = {key: opt[key] for key in own if opt.get(key) is not None}
    return CalibrationOptions(**given)


def _are_crops_fixed(options: CalibrationOptions) -> bool:
    fixed = options.fixed_crops
    if fixed is None:
        return False
    if not isinstance(fixed, bool):
        raise OptionError(f"{WHERE}: fixed_crops: {fixed!r} is not true or false")
    return fixed


def _seed(options: CalibrationOptions) -> int:
    if options.seed is not None:
        return options.seed
    # BasicSR seeds torch with manual_seed + rank; patches must not depend on the rank.
    rank, _ = get_dist_info()
    return torch.initial_seed() - rank


def _image_names(opt: Mapping[str, Any]) -> list[Path]:
    """Paths of the images, or keys for an LMDB."""
    if opt.get("dataroot_lq") is None:
        raise OptionError(f"{WHERE}: dataroot_lq is missing")
    root = Path(opt["dataroot_lq"])
    list_file = opt.get("meta_info_file")
    if backend_type(WHERE, opt.get("io_backend")) == "lmdb":
        return [Path(key) for key in read_keys(list_file or root / LMDB_LIST, root)]
    if list_file:
        return [root / name for name in read_names(list_file, root)]
    return list_images(root, "dataroot_lq")


def _spread(names: list[Path], count: int) -> list[Path]:
    """At most ``count`` of ``names``, evenly spread: neighbours often show the same scene."""
    if count >= len(names):
        return names
    return [names[int(i * len(names) / count)] for i in range(count)]


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
