"""Clips to calibrate, train and test on, from folders of frames and video files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adabm_basicsr.data.frames import ALL_FRAMES, FrameRange, list_clips, read_clip
from adabm_basicsr.data.headers import MAX_PIXELS, check_max_pixels
from adabm_basicsr.data.new_folders import LMDB_SUFFIX, all_or_nothing, check_targets, to_lmdb
from adabm_basicsr.data.prepare import crop_to_scale, downscale, write_pair
from adabm_basicsr.errors import ImageError, OptionError


def prepare_clips(
    paths: Sequence[Path],
    scale: int,
    out: Path | None = None,
    mod: Path | None = None,
    frames: FrameRange = ALL_FRAMES,
    shrink: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, int]:
    """Write a folder of frames for each clip, as REDS4 and Vid4 are laid out for BasicSR.

    Frames are PNG files, named by their number in eight digits, from 0.

    Args:
        paths: Video files, folders of frames, and folders of such files and folders.
        scale: Factor, at least 1.
        out: New folder, or new LMDB (``NAME.lmdb``), for the LR frames: bicubic, as `downscale`
            makes them.
        mod: The same for the frames themselves, cropped to multiples of ``scale``.
        frames: Which frames of each clip to take.
        shrink: Reduce frames by this factor first, as films are often sharper then.
        max_pixels: Larger frames are rejected.

    Returns:
        How many frames of each clip were written, by its name.

    Raises:
        AdaBMError: A clip is missing, broken, too short or too small, or a target is not empty.
    """
    folders = check_targets(out, mod)
    if not folders:
        raise OptionError("--out, --mod or both are needed")
    check_max_pixels("--max-pixels", max_pixels)
    clips = list_clips(paths, "--clips")
    if any(folder.suffix == LMDB_SUFFIX for folder in folders.values()):
        _check_keys(clips)
    counts = {}
    with ExitStack() as stack:
        unfinished = {
            key: stack.enter_context(all_or_nothing(folder)) for key, folder in folders.items()
        }
        for name, path in clips.items():
            below = {key: folder / name for key, folder in unfinished.items()}
            read = _shrunk(path, read_clip(path, frames, max_pixels=max_pixels), shrink)
            counts[name] = _write_frames(path, read, scale, below)
        for key, folder in unfinished.items():
            if folders[key].suffix == LMDB_SUFFIX:
                to_lmdb(folder, sorted(folder.glob("*/*.png")))
    return counts


def _check_keys(clips: dict[str, Path]) -> None:
    for name, path in clips.items():
        if not name.isascii() or "." in name:
            raise ImageError(
                f"--clips: {path} makes no key of an LMDB; name it in ASCII, without a dot"
            )


def _shrunk(path: Path, frames: Iterator[np.ndarray], factor: int) -> Iterator[np.ndarray]:
    if factor == 1:
        yield from frames
        return
    for frame in frames:
        yield downscale(crop_to_scale(frame, f"a frame of clip {path}", factor), factor)


def _write_frames(
    path: Path, frames: Iterator[np.ndarray], scale: int, folders: dict[str, Path]
) -> int:
    """Write the frames of a clip below ``--out`` and ``--mod``; returns how many there were."""
    count = 0
    for frame in tqdm(frames, path.name, unit="frame", disable=None):
        files = {key: folder / f"{count:08d}.png" for key, folder in folders.items()}
        label = f"a frame of clip {path}"
        write_pair(frame, label, scale, files.get("--out"), files.get("--mod"))
        count += 1
    return count
