"""Checks the clips that BasicSR's video datasets are going to read, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adabm_basicsr.data.frames import Size, check_same_size, list_frames
from adabm_basicsr.data.headers import check_max_pixels
from adabm_basicsr.data.sources import read_names
from adabm_basicsr.errors import ImageError, OptionError, check_range, counted
from adabm_basicsr.files import is_folder
from adabm_basicsr.options.paths import existing_file

RECURRENT = "VideoRecurrentTestDataset"
VIMEO = "VideoTestVimeo90KDataset"
# Validation sets of clips, and whether a set reads all frames into memory.
CLIP_SETS = {
    "VideoTestDataset": False,
    "VideoTestDUFDataset": False,
    RECURRENT: True,
    VIMEO: False,
}
ALL_FRAMES = -1  # `num_frame` of a set that gives whole clips
LARGEST_WINDOW = 99  # frames
VIMEO_FRAMES = 7  # of each of its clips, im1.png to im7.png; the fourth is judged
TRAINING_SET = "REDSRecurrentDataset"
TRAINING_FRAMES = 100  # which its code takes every clip to have

ReadSizes = Callable[[Sequence[Path], int], list[Size]]


def set_clip_defaults(where: str, dataset: dict[str, Any]) -> None:
    """Check what a validation set of clips says, and fill in what BasicSR asks for.

    Args:
        where: The set, for messages.
        dataset: Its options, changed in place; the backend is filled in.

    Raises:
        OptionError: A value is missing or isn't one that BasicSR takes.
    """
    kind = dataset["type"]
    for key in ("dataroot_lq", "dataroot_gt"):
        if dataset.get(key) is None:
            raise OptionError(f"{where}: {key} is missing")
    if dataset["io_backend"]["type"] == "lmdb":
        raise OptionError(f"{where}: io_backend: type: {kind} reads folders alone, not an LMDB")
    defaults = {
        "cache_data": CLIP_SETS[kind],
        "padding": "reflection",
        "use_duf_downsampling": False,
    }
    for key, value in defaults.items():
        if dataset.get(key) is None:
            dataset[key] = value
    if not dataset["cache_data"] and kind == RECURRENT:
        raise OptionError(f"{where}: cache_data: {kind} gives whole clips; set cache_data: true")
    if dataset["cache_data"] and kind == VIMEO:
        raise OptionError(f"{where}: cache_data: {kind} keeps no frames; set cache_data: false")
    dataset["num_frame"] = _window(where, dataset)


def _window(where: str, dataset: dict[str, Any]) -> int:
    """Frames of a window; `ALL_FRAMES` where whole clips are given."""
    if dataset["type"] == RECURRENT:
        return ALL_FRAMES
    if dataset.get("num_frame") is None:
        raise OptionError(f"{where}: num_frame is missing: the frames that the network takes")
    most = VIMEO_FRAMES if dataset["type"] == VIMEO else LARGEST_WINDOW
    frames = check_range(f"{where}: num_frame", dataset["num_frame"], 1, most)
    if frames % 2 == 0:
        raise OptionError(f"{where}: num_frame: {frames} is even; the middle frame is made")
    return frames


def check_clips(
    where: str, dataset: dict[str, Any], scale: int, read_sizes: ReadSizes
) -> list[Size]:
    """Decode all frames of a validation set and pair them as BasicSR does.

    Args:
        where: The set, for messages.
        dataset: Options that `set_clip_defaults` has passed.
        scale: How much larger than LR frames the ground truth is.
        read_sizes: Decodes images of at most so many pixels, and gives their heights and widths.

    Returns:
        Sizes of the frames that metrics are computed on.

    Raises:
        ImageError: A clip is missing, too short or broken, or its frames don't fit the truth's.
        OptionError: The options don't fit one another.
    """
    max_pixels = check_max_pixels(f"{where}: max_pixels", dataset.get("max_pixels"))
    sizes = []
    for low_frames, true_frames in _frames(where, dataset):
        low = _one_size(read_sizes(low_frames, max_pixels), low_frames)
        truth = _one_size(read_sizes(true_frames, max_pixels), true_frames)
        expected = (low[0] * scale, low[1] * scale)
        if truth != expected:
            raise ImageError(
                f"{where}: {true_frames[0]} of {truth[1]}x{truth[0]} pixels is not {scale} (scale) "
                f"times as large as {low_frames[0]} of {low[1]}x{low[0]}"
            )
        sizes.append(truth)
    return sizes


def _frames(where: str, dataset: dict[str, Any]) -> list[tuple[list[Path], list[Path]]]:
    """LR frames and those of the truth of each clip."""
    low, truth = Path(dataset["dataroot_lq"]), Path(dataset["dataroot_gt"])
    names = _clip_names(where, dataset, low, truth)
    clips = []
    for name in names:
        if dataset["type"] == VIMEO:
            around = (VIMEO_FRAMES - dataset["num_frame"]) // 2
            numbers = range(1 + around, 1 + VIMEO_FRAMES - around)
            frames = [low / name / f"im{number}.png" for number in numbers]
            clips.append((frames, [truth / name / "im4.png"]))
            continue
        low_frames = _in_basicsrs_order(where, low / name)
        true_frames = _in_basicsrs_order(where, truth / name)
        if len(low_frames) != len(true_frames):
            raise ImageError(
                f"{where}: clip {name} has {counted(len(low_frames), 'frames')} in dataroot_lq, "
                f"{len(true_frames)} in dataroot_gt"
            )
        if len(low_frames) < dataset["num_frame"]:
            raise ImageError(
                f"{where}: num_frame: {dataset['num_frame']}, but clip {name} has "
                f"{counted(len(low_frames), 'frames')}"
            )
        clips.append((low_frames, true_frames))
    return clips


def _clip_names(where: str, dataset: dict[str, Any], low: Path, truth: Path) -> list[str]:
    if "meta_info_file" in dataset:
        return read_names(dataset["meta_info_file"], low)
    if dataset["type"] == VIMEO:
        raise OptionError(f"{where}: meta_info_file is missing: the list of its clips")
    names = _folders_in(f"{where}: dataroot_lq", low)
    true_names = _folders_in(f"{where}: dataroot_gt", truth)
    if not names:
        raise ImageError(f"{where}: dataroot_lq: folder {low} holds no clips")
    for name in names:
        if name not in true_names:
            raise ImageError(f"{where}: clip {name} of dataroot_lq is not in dataroot_gt {truth}")
    if len(names) < len(true_names):
        raise ImageError(f"{where}: dataroot_gt {truth} has more clips than dataroot_lq {low}")
    return names


def _folders_in(where: str, root: Path) -> list[str]:
    """Names of the clips in a folder; BasicSR takes all that lies there for clips."""
    names = []
    for path in sorted(root.glob("[!.]*")):
        if not is_folder(path):
            raise ImageError(
                f"{where}: {path} is a file; folder {root} has to hold a folder of frames for each "
                "clip, and nothing else"
            )
        names.append(path.name)
    return names


def _in_basicsrs_order(where: str, folder: Path) -> list[Path]:
    """Frames of a clip, in a folder of nothing else, named in the order of their numbers."""
    frames = list_frames(folder, f"{where}: clip")
    for stray in sorted(set(folder.glob("[!.]*")) - set(frames)):
        raise ImageError(f"{where}: {stray} is not a frame")
    for before, after in zip(sorted(frames), frames, strict=True):
        if before != after:
            raise ImageError(
                f"{where}: {folder}: BasicSR would read {before.name} before {after.name}; give "
                "numbers the same digits, as adabm-basicsr prepare --clips does"
            )
    return frames


def _one_size(sizes: list[Size], frames: Sequence[Path]) -> Size:
    first = (frames[0].name, sizes[0])
    for size, frame in zip(sizes, frames, strict=True):
        check_same_size(f"clip {frame.parent}", (frame.name, size), first)
    return sizes[0]


def check_training_clips(where: str, dataset: dict[str, Any]) -> None:
    """Reject clips that BasicSR's `REDSRecurrentDataset` would read wrong.

    It takes every clip to have 100 frames: of longer ones it never reads the rest, and of shorter
    ones it asks for frames that aren't there.

    Args:
        where: The set, for messages.
        dataset: Its options.

    Raises:
        OptionError: Its list names a clip of another length.
    """
    if dataset.get("meta_info_file") is None:
        raise OptionError(f"{where}: meta_info_file is missing: the list of its clips")
    path = existing_file(f"{where}: meta_info_file", dataset["meta_info_file"])
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        words = line.split()
        if len(words) > 1 and words[1] != str(TRAINING_FRAMES):
            raise OptionError(
                f"{where}: type: {TRAINING_SET} takes clips of {TRAINING_FRAMES} frames alone, but "
                f"{path} says {words[1]} of clip {words[0]}; cut clips by adabm-basicsr prepare "
                f"--clips --frames 0-{TRAINING_FRAMES - 1}"
            )
