"""Low-resolution clips alone: what calibration and fine-tuning of video networks need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from adabm_basicsr.data.frames import in_order, list_clips, of_one_size, read_clip
from adabm_basicsr.data.images import decode_image
from adabm_basicsr.data.patches import (
    CHANCE,
    WHERE,
    PatchDataset,
    PatchOptions,
    data_root,
    read_options,
    spread,
)
from adabm_basicsr.data.sources import LMDB_LIST, backend_type, open_lmdb, read_keys, read_names
from adabm_basicsr.errors import ImageError, OptionError, check_positive, counted
from adabm_basicsr.quantization.fields import option

Clip = tuple[str, Iterator[np.ndarray]]  # its path, and its frames


@dataclass(frozen=True)
class ClipOptions(PatchOptions):
    """Options of `ClipCalibrationDataset`."""

    dataroot_lq: str | None = option(
        "Folder of clips, each a folder of low-resolution frames or a video file, or an LMDB "
        "(io_backend: {type: lmdb}).",
        required=True,
    )
    num_frame: int | None = option(
        "Frames of a patch, one after another: long enough that errors add up as in use.",
        required=True,
        minimum=1,
    )
    num_clips: int = option(
        "How many clips to take at most, evenly spread over the sorted list.",
        100,
        minimum=1,
    )
    max_frames: int = option(
        "How many frames of each clip to take at most, from its first: they are kept in memory.",
        100,
        minimum=1,
    )
    random_reverse: bool = option("Whether patches run backwards at random.", True)


@DATASET_REGISTRY.register()
class ClipCalibrationDataset(PatchDataset):
    """Random stretches of low-resolution clips, no ground truth: ``(T, C, lq_size, lq_size)``.

    Frames are decoded once and kept in memory.

    Args:
        opt: `ClipOptions` and what every dataset has: ``name``, ``io_backend`` (``{type: disk}`` or
            ``{type: lmdb}``), ``meta_info_file`` (a list of clips below ``dataroot_lq``, the first
            word of each line, as BasicSR's of REDS and Vimeo-90K), ...

    Raises:
        AdaBMError: An option is unknown, or clips are missing, broken or too short; the message
            names them.
    """

    unit = "clips"

    def __init__(self, opt: dict[str, Any]) -> None:
        options = read_options(ClipOptions, opt)
        super().__init__(opt, options)
        self.frames = check_positive(f"{WHERE}: num_frame", options.num_frame)
        self.reversal = options.random_reverse
        most = check_positive(f"{WHERE}: max_frames", options.max_frames)
        if most < self.frames:
            raise OptionError(f"{WHERE}: max_frames: {most} is less than num_frame {self.frames}")
        count = check_positive(f"{WHERE}: num_clips", options.num_clips)
        clips_of = _clips_of_folder
        if backend_type(WHERE, opt.get("io_backend")) == "lmdb":
            clips_of = _clips_of_lmdb
        self.paths = []
        self.clips: list[np.ndarray] = []
        for path, frames in clips_of(opt, count, self.channels, self.max_pixels):
            clip = list(islice(frames, most))
            if len(clip) < self.frames:
                raise ImageError(
                    f"{WHERE}: num_frame: {self.frames}, but clip {path} has "
                    f"{counted(len(clip), 'frames')}"
                )
            self.paths.append(path)
            self.clips.append(np.stack(clip))
        self.images = [clip[len(clip) // 2] for clip in self.clips]

    def _draw(self, index: int, random: np.random.Generator) -> np.ndarray:
        clip = self.clips[index]
        first = random.integers(len(clip) - self.frames + 1)
        frames = clip[first : first + self.frames]
        if random.random() < CHANCE and self.reversal:
            frames = frames[::-1]
        return frames


def _clips_of_folder(
    opt: Mapping[str, Any], count: int, channels: int, max_pixels: int
) -> Iterator[Clip]:
    """At most ``count`` clips, folders of frames or video files."""
    root = data_root(opt)
    if opt.get("meta_info_file"):
        paths = [root / name for name in read_names(opt["meta_info_file"], root)]
    else:
        paths = list(list_clips([root], f"{WHERE}: dataroot_lq").values())
    for path in spread(paths, count):
        yield str(path), read_clip(path, channels=channels, max_pixels=max_pixels)


def _clips_of_lmdb(
    opt: Mapping[str, Any], count: int, channels: int, max_pixels: int
) -> Iterator[Clip]:
    """At most ``count`` clips of an LMDB, whose keys are ``CLIP/FRAME``."""
    root = data_root(opt)
    clips: dict[str, list[Path]] = {}
    for key in read_keys(root / LMDB_LIST, root):
        frame = Path(key)
        clips.setdefault(frame.parent.as_posix(), []).append(frame)
    names = list(clips)
    if opt.get("meta_info_file"):
        names = read_names(opt["meta_info_file"], root)
    with open_lmdb(root) as read:
        for name in spread(names, count):
            where = f"{root}:{name}"
            if name not in clips:
                raise ImageError(
                    f"LMDB {root} has no clip {name!r}, which the meta info file names"
                )
            frames = in_order(clips[name], f"clip {where}")
            decoded = _decode(read, frames, root, channels, max_pixels)
            yield where, of_one_size(decoded, f"clip {where}")


def _decode(
    read: Callable[[str], bytes], keys: list[Path], root: Path, channels: int, max_pixels: int
) -> Iterator[tuple[str, np.ndarray]]:
    for key in keys:
        content = read(key.as_posix())
        yield key.name, decode_image(content, f"{root}:{key}", channels, max_pixels)
