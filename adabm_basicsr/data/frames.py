"""Finds and reads the frames of clips: folders of numbered images, and video files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from adabm_basicsr.data.headers import MAX_PIXELS
from adabm_basicsr.data.images import (
    EXTENSIONS,
    RGB,
    find_images,
    read_pixels,
    to_channels,
    to_grey,
)
from adabm_basicsr.errors import ImageError, OptionError, counted, not_found
from adabm_basicsr.files import holds_folders, is_file, is_folder

VIDEO_EXTENSIONS = {
    ".avi",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".ts",
    ".webm",
    ".wmv",
}
# Of its frames that a video may lack. Some formats don't count them: their number is then that of
# the duration, of which sound may have more.
MISSING_SHARE = 0.1
# By how much the channels of a grey video may differ, of 255: FFmpeg makes colours of it, and
# rounds. Up to 3 were seen.
ROUNDING = 4
# No messages of FFmpeg's own on stderr: ours say what is wrong. Read at the first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

# From pixels as OpenCV gives them to those of the channels that are asked for.
Convert = Callable[[np.ndarray], np.ndarray]
Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class FrameRange:
    """Which frames of a clip to take.

    Attributes:
        first: The first one, from 0.
        last: The last one, which is taken too; None for that of the clip.
    """

    first: int = 0
    last: int | None = None

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def check(self, clip: Path, count: int) -> None:
        """Check that a clip of ``count`` frames has all that are asked for.

        Raises:
            ImageError: It is too short.
        """
        if self.last is not None and count <= self.last:
            raise ImageError(
                f"clip {clip} has {counted(count, 'frames')}, but frames {self} are asked for"
            )


ALL_FRAMES = FrameRange()


def parse_frames(key: str, text: str) -> FrameRange:
    """Read ``FIRST-LAST``; ``key`` is the option that says so.

    Raises:
        OptionError: The text is something else.
    """
    found = re.fullmatch(r"(\d{1,9})-(\d{1,9})", text)
    if found is None or int(found.group(1)) > int(found.group(2)):
        raise OptionError(f"{key}: {text!r} is not FIRST-LAST, such as 0-99")
    return FrameRange(int(found.group(1)), int(found.group(2)))


def list_clips(paths: Sequence[Path], key: str) -> dict[str, Path]:
    """The clips at some paths by name, which is that of their folder or file without its ending.

    Args:
        paths: Video files, folders of frames, and folders of such files and folders. A clip that
            several of them name is taken once.
        key: The option that names them, for messages.

    Returns:
        Folders of frames and video files.

    Raises:
        ImageError: One of them is absent or no clip, or two clips have the same name.
    """
    clips: dict[str, Path] = {}
    for path in paths:
        for clip in _clips_at(path, key):
            # Path.resolve raises for links that lead back to themselves.
            name = Path(os.path.realpath(clip)).name
            if is_file(clip):
                name = clip.stem
            first = clips.setdefault(name, clip)
            if os.path.realpath(first) != os.path.realpath(clip):
                raise ImageError(f"{key}: {first} and {clip} would both become clip {name}")
    return clips


def _clips_at(path: Path, key: str) -> list[Path]:
    if is_file(path):
        if path.suffix.lower() in EXTENSIONS:
            raise ImageError(f"{key}: {path} is an image, no clip; give the folder of its frames")
        return [path]
    if not is_folder(path):
        raise not_found(f"{key}: clip", path, ImageError)
    return _clips_in(path, key)


def _clips_in(folder: Path, key: str) -> list[Path]:
    """The folder itself if it holds frames, or the clips that it holds."""
    frames = []
    clips = []
    for entry in sorted(folder.iterdir()):
        ending = entry.suffix.lower()
        if entry.name.startswith("."):
            continue
        if ending in EXTENSIONS and is_file(entry):
            frames.append(entry)
        elif ending in VIDEO_EXTENSIONS or is_folder(entry):
            clips.append(entry)
    if frames and clips:
        raise ImageError(
            f"{key}: folder {folder} holds an image, {frames[0].name}, beside a clip, "
            f"{clips[0].name}; give the frames of a clip a folder of their own"
        )
    if frames:
        return [folder]
    if not clips:
        raise ImageError(f"{key}: folder {folder} holds neither frames nor clips")
    return clips


def list_frames(folder: str | Path, key: str = "clip") -> list[Path]:
    """Image files of a folder in the order of their numbers; see `in_order`.

    Args:
        folder: The folder.
        key: What to call it in messages.

    Raises:
        ImageError: The folder is absent or holds no image, or its frames can't be put in order.
    """
    where = f"{key} {folder}"
    paths = find_images(folder, key)
    if not paths and holds_folders(folder):
        raise ImageError(
            f"{where}: it holds folders, no frames; clips are looked for one level down"
        )
    if not paths:
        raise ImageError(f"{where}: it holds no frames ({', '.join(sorted(EXTENSIONS))})")
    return in_order(paths, where)


def in_order(paths: list[Path], where: str) -> list[Path]:
    """Frames of a clip in the order of their numbers, ``2.png`` before ``10.png``.

    Args:
        paths: The frames, whose names differ in one number.
        where: The clip, for messages.

    Raises:
        ImageError: Names differ otherwise, or the numbering has gaps.
    """
    frames = _numbered(paths, where)
    ordered = sorted(frames)
    for number, following in pairwise(ordered):
        if following != number + 1:
            raise ImageError(
                f"{where}: {frames[following].name} follows {frames[number].name}; number the "
                "frames without gaps"
            )
    return [frames[number] for number in ordered]


def _numbered(paths: list[Path], where: str) -> dict[int, Path]:
    """Frames by number: that part of their names in which they differ."""
    first = paths[0]
    first_parts = re.split(r"(\d+)", first.stem)
    places = set()
    split = {path: re.split(r"(\d+)", path.stem) for path in paths}
    for path, parts in split.items():
        # Words and numbers in turn, beginning with a word.
        if len(parts) == 1:
            raise ImageError(f"{where}: {path.name} has no number; frames go by their numbers")
        if parts[::2] != first_parts[::2]:
            raise ImageError(
                f"{where}: {first.name} and {path.name} are not frames of one clip; name frames "
                "alike but for their number"
            )
        places |= {place for place, part in enumerate(parts) if part != first_parts[place]}
    if len(places) > 1:
        raise ImageError(f"{where}: names of frames differ in {len(places)} numbers, not in one")
    place = max(places, default=1)
    frames: dict[int, Path] = {}
    for path, parts in split.items():
        number = int(parts[place])
        if number in frames:
            raise ImageError(f"{where}: {frames[number].name} and {path.name} have the same number")
        frames[number] = path
    return frames


def read_clip(
    path: Path,
    frames: FrameRange = ALL_FRAMES,
    channels: int = RGB,
    max_pixels: int = MAX_PIXELS,
    only_grey: bool = False,
) -> Iterator[np.ndarray]:
    """Read the frames of a clip one after another.

    Args:
        path: Folder of frames or video file.
        frames: Which of them.
        channels: 3 for RGB, 1 for grey.
        max_pixels: Larger frames are rejected.
        only_grey: Whether colours are rejected, where one channel is asked for, not converted.

    Yields:
        Frames ``(H, W, channels)``, all of one size, of the files' own type (uint8 from videos).

    Raises:
        ImageError: The clip is absent, too short or broken, or its frames differ in size.
    """
    convert: Convert = partial(to_channels, channels=channels)
    if only_grey:
        convert = partial(to_grey, tolerance=ROUNDING if is_file(path) else 0)
    if is_file(path):
        read = _read_video(path, frames, convert, max_pixels)
    else:
        read = _read_folder(path, frames, convert, max_pixels)
    yield from of_one_size(read, f"clip {path}")


def of_one_size(frames: Iterable[tuple[str, np.ndarray]], where: str) -> Iterator[np.ndarray]:
    """Frames, checked to have the size of the first one.

    Args:
        frames: Names and frames ``(H, W, C)``.
        where: The clip, for messages.

    Raises:
        ImageError: One has another size.
    """
    first: tuple[str, Size] | None = None
    for name, image in frames:
        size = image.shape[:2]
        first = first or (name, size)
        check_same_size(where, (name, size), first)
        yield image


def check_same_size(where: str, frame: tuple[str, Size], first: tuple[str, Size]) -> None:
    """Check that a frame of a clip has the size of the first one.

    Args:
        where: The clip, for the message.
        frame: The name of the frame, and its height and width.
        first: The same of the first one.

    Raises:
        ImageError: It hasn't.
    """
    name, (height, width) = frame
    first_name, (first_height, first_width) = first
    if (height, width) != (first_height, first_width):
        raise ImageError(
            f"{where}: {name} has {width}x{height} pixels, but {first_name} "
            f"{first_width}x{first_height}; frames of a clip must be of one size"
        )


def _read_folder(
    folder: Path, frames: FrameRange, convert: Convert, max_pixels: int
) -> Iterator[tuple[str, np.ndarray]]:
    paths = list_frames(folder)
    frames.check(folder, len(paths))
    end = len(paths) if frames.last is None else frames.last + 1
    for path in paths[frames.first : end]:
        yield path.name, convert(read_pixels(path, max_pixels))


def _read_video(
    path: Path, frames: FrameRange, convert: Convert, max_pixels: int
) -> Iterator[tuple[str, np.ndarray]]:
    with _open_video(path, max_pixels) as video:
        expected = video.get(cv2.CAP_PROP_FRAME_COUNT)
        count = 0
        # Frames before the first are decoded too: jumps in a video lead near it at best.
        while frames.last is None or count <= frames.last:
            if not video.grab():
                break
            count += 1
            if count > frames.first:
                name = f"frame {count - 1}"
                decoded, image = video.retrieve()
                if not decoded:
                    raise ImageError(f"video {path}: {name} cannot be decoded")
                yield name, convert(image)
    frames.check(path, count)
    if frames.last is None and count < (1 - MISSING_SHARE) * expected:
        raise ImageError(
            f"video {path} breaks off after {count} of {expected:.0f} frames; take those alone, or "
            "a whole file"
        )


@contextmanager
def _open_video(path: Path, max_pixels: int) -> Iterator[cv2.VideoCapture]:
    """Open a video by the FFmpeg that OpenCV comes with, turned as it is to be shown."""
    if not path.stat().st_size:
        raise ImageError(f"video {path} is empty")
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        # A path from the root: FFmpeg takes some names for addresses.
        video = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
    finally:
        logging.setLogLevel(level)
    try:
        if not video.isOpened():
            raise ImageError(
                f"video {path} is broken, or of a codec that OpenCV lacks; H.264 in an MP4 file is "
                "read everywhere"
            )
        width = int(video.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > max_pixels:
            raise ImageError(
                f"video {path} has {width}x{height} pixels, more than max_pixels {max_pixels} "
                "allows"
            )
        yield video
    finally:
        video.release()
