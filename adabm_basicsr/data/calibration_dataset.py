"""Low-resolution images alone: the data that calibration and fine-tuning need."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from adabm_basicsr.data.headers import MAX_PIXELS, OPENCV_PIXELS, check_max_pixels
from adabm_basicsr.data.images import decode_image, list_images, read_image, to_unit_range
from adabm_basicsr.data.sources import LMDB_LIST, backend_type, open_lmdb, read_keys, read_names
from adabm_basicsr.errors import AdaBMError, check_keys, check_positive
from adabm_basicsr.quantization.fields import option

CALIBRATION_EPOCH = -1  # calibration takes crops of its own, before those of the first epoch


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

    A patch depends on (seed, epoch, index) alone, so that a resumed or distributed run sees what a plain one sees. The
    epoch is part of the key: item ``round * len(self) + index``, where each epoch has ``dataset_enlarge_ratio`` rounds.
    Images are decoded once and kept in memory.

    Args:
        opt: `CalibrationOptions` and what every dataset has: ``name``, ``io_backend``
            (``{type: disk}`` or ``{type: lmdb}``), ``meta_info_file`` (a list of file names below
            ``dataroot_lq``, the first word of each line), ...

    Raises:
        AdaBMError: An option is unknown, or images are missing or broken; the message names them.
    """

    def __init__(self, opt: dict) -> None:
        super().__init__()
        where = "datasets: train"
        own = [field.name for field in fields(CalibrationOptions)]
        check_keys(where, opt, [*own, *COMMON_KEYS, *ADDED_KEYS])
        given = {key: opt[key] for key in own if opt.get(key) is not None}
        options = CalibrationOptions(**given)
        self.opt = opt
        self.size = check_positive(f"{where}: lq_size", options.lq_size)
        self.channels = options.channels
        if self.channels not in (1, 3):
            raise AdaBMError(f"{where}: channels: {self.channels!r} is not 1 (grey) or 3 (RGB)")
        self.rounds = check_positive(
            f"{where}: dataset_enlarge_ratio", options.dataset_enlarge_ratio
        )
        self.fixed = bool(options.fixed_crops)
        if not isinstance(options.fixed_crops, (bool, type(None))):
            raise AdaBMError(f"{where}: fixed_crops: {options.fixed_crops!r} is not true or false")
        self.hflip = options.use_hflip
        self.rotation = options.use_rot
        self.seed = options.seed
        if self.seed is None:
            # BasicSR seeds torch with manual_seed + rank; patches must not depend on the rank.
            self.seed = torch.initial_seed() - get_dist_info()[0]
        count = check_positive(f"{where}: num_images", options.num_images)
        names = _spread(_image_names(opt, where), count)
        max_pixels = check_max_pixels(f"{where}: max_pixels", options.max_pixels)
        if self.size**2 > max_pixels:
            raise AdaBMError(
                f"{where}: lq_size: {self.size}: patches have more pixels than max_pixels {max_pixels} allows"
            )
        self.images = _read_images(opt, where, names, self.channels, max_pixels)
        self.paths = [str(name) for name in names]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int) -> dict[str, Tensor | str | int]:
        """``lq``: patch ``(C, lq_size, lq_size)``, RGB in 0..1; ``lq_path``: its image; ``patch_key`` if fixed."""
        if self.fixed and key >= 0:
            key %= self.rounds * len(self)
        round_, index = divmod(key, len(self))
        random = np.random.default_rng(
            (self.seed % 2**32, round_ - CALIBRATION_EPOCH * self.rounds, index)
        )
        patch = to_unit_range(self._augment(self._crop(self.images[index], random), random))
        item = {
            "lq": torch.from_numpy(np.ascontiguousarray(patch.transpose(2, 0, 1))),
            "lq_path": self.paths[index],
        }
        return {**item, "patch_key": key} if self.fixed else item

    def items_per_process(self, world_size: int) -> int:
        """Items of an epoch for each process: those of whole batches of all processes together."""
        batch = self.opt.get("batch_size_per_gpu", 1)
        return self.rounds * len(self) // (batch * world_size) * batch

    def epoch_keys(self, epoch: int, rank: int, world_size: int) -> list[int]:
        """Keys of this process's items in ``epoch``, in random order; those that a resumed run has had are left out.

        One process would have the same items in the same batches, of which each takes a part.
        """
        total = self.rounds * len(self)
        order = np.random.default_rng((self.seed % 2**32, epoch)).permutation(total)
        order = order[: self.items_per_process(world_size) * world_size]
        own = order.reshape(-1, world_size, self.opt.get("batch_size_per_gpu", 1))[:, rank]
        keys = [epoch * total + int(offset) for offset in own.flat]
        resumed = self.opt.get("resume_at")
        if not resumed or resumed["epoch"] != epoch:
            return keys
        batch = self.opt["batch_size_per_gpu"] * resumed["gpus"]
        return keys[(resumed["iter"] - epoch * (len(keys) // batch)) * batch :]

    def calibration_batches(self, batch_size: int) -> list[Tensor]:
        """Patches of all images in batches of ``batch_size``, each ``(B, C, lq_size, lq_size)``."""
        first = CALIBRATION_EPOCH * self.rounds * len(self)
        patches = [self[first + offset]["lq"] for offset in range(self.rounds * len(self))]
        return list(torch.stack(patches).split(batch_size))

    def _crop(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        missing = [max(self.size - side, 0) for side in (height, width)]
        if any(missing):
            image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
        top = random.integers(max(height - self.size, 0) + 1)
        left = random.integers(max(width - self.size, 0) + 1)
        return image[top : top + self.size, left : left + self.size]

    def _augment(self, patch: np.ndarray, random: np.random.Generator) -> np.ndarray:
        hflip, vflip, transpose = random.random(3) < 0.5
        patch = patch[:, ::-1] if hflip and self.hflip else patch
        patch = patch[::-1] if vflip and self.rotation else patch
        return patch.transpose(1, 0, 2) if transpose and self.rotation else patch


def _image_names(opt: dict, where: str) -> list[Path]:
    """Paths of the images, or keys for an LMDB."""
    if opt.get("dataroot_lq") is None:
        raise AdaBMError(f"{where}: dataroot_lq is missing")
    root, list_file = Path(opt["dataroot_lq"]), opt.get("meta_info_file")
    if backend_type(where, opt.get("io_backend")) == "lmdb":
        return [Path(key) for key in read_keys(list_file or root / LMDB_LIST, root)]
    return (
        [root / name for name in read_names(list_file, root)]
        if list_file
        else list_images(root, "dataroot_lq")
    )


def _spread(names: list[Path], count: int) -> list[Path]:
    """At most ``count`` of ``names``, evenly spread: consecutive files often show the same scene."""
    return (
        [names[int(i * len(names) / count)] for i in range(count)] if count < len(names) else names
    )


def _read_images(
    opt: dict, where: str, names: list[Path], channels: int, max_pixels: int
) -> list[np.ndarray]:
    if backend_type(where, opt.get("io_backend")) == "disk":
        return [read_image(name, channels, max_pixels) for name in names]
    root = opt["dataroot_lq"]
    with open_lmdb(root) as read:
        return [
            decode_image(read(str(name)), f"{root}:{name}", channels, max_pixels) for name in names
        ]
