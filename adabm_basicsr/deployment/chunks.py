"""Super-resolves clips of any length in chunks of bounded memory.

A chunk is run with some frames before and after it, whose output is thrown away: recurrent networks
carry over from them what they would have carried over in the whole clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from basicsr.data.data_util import generate_frame_indices
from torch import Tensor

from adabm_basicsr.data.frames import read_clip
from adabm_basicsr.data.headers import MAX_PIXELS
from adabm_basicsr.data.images import GREY, RGB, to_unit_range, write_image
from adabm_basicsr.errors import AdaBMError, ImageError, counted
from adabm_basicsr.files import is_file, remove_temporaries
from adabm_basicsr.quantization.checks import CLIP_AXES
from adabm_basicsr.quantization.structure.clips import middle_frame

# Of 640x360 LR pixels, 24 frames and their output x4 take 1.1 GB beside what the network takes.
DEFAULT_CHUNK = 8
DEFAULT_CHUNK_OVERLAP = 8
WHITE = 255


@dataclass(frozen=True)
class Chunking:
    """How a clip is cut.

    Attributes:
        frames: Frames of a chunk whose output is kept, at least 1.
        overlap: Frames on either side that are run with them, at least 1: no chunk is a single
            frame then, to which there is no flow.
        window: Frames of which a network makes the middle one, an odd number; None for a network
            that makes all frames of a clip.

    Raises:
        AdaBMError: A window has an even number of frames.
    """

    frames: int = DEFAULT_CHUNK
    overlap: int = DEFAULT_CHUNK_OVERLAP
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window % 2 == 0:
            raise AdaBMError(
                f"the network takes windows of {self.window} frames, and an even number has no "
                "middle one to make"
            )

    @property
    def reach(self) -> int:
        """Frames that are run on either side: windows need half of their length."""
        if self.window is None:
            return self.overlap
        return self.window // 2

    @property
    def kept(self) -> int:
        """Frames whose output is kept; the first chunk must hold a whole window."""
        if self.window is None:
            return self.frames
        return max(self.frames, self.reach + 1)


@dataclass(frozen=True)
class Chunk:
    """Frames to run at once.

    Attributes:
        frames: Those before, those whose output is kept, and those after, ``(H, W, C)`` each.
        first: The first whose output is kept.
        count: How many outputs are kept.
    """

    frames: list[np.ndarray]
    first: int
    count: int


def split_clip(frames: Iterable[np.ndarray], chunk: int, reach: int) -> Iterator[Chunk]:
    """Cut a clip into chunks.

    Args:
        frames: Frames of the clip; no more than ``chunk + 2 * reach + 1`` are held at once.
        chunk: Frames whose output is kept.
        reach: Frames on either side that are run with them, where the clip has them.
    """
    held: list[np.ndarray] = []
    before = 0
    for frame in frames:
        # With one more frame to come, what is left is never shorter than a window.
        if len(held) == before + chunk + reach:
            yield Chunk(list(held), before, chunk)
            following = before + chunk
            start = max(following - reach, 0)
            held = held[start:]
            before = following - start
        held.append(frame)
    if held:
        yield Chunk(held, before, len(held) - before)


@torch.no_grad()
def run_chunk(
    network: Callable[[Tensor], Tensor], chunk: Chunk, window: int | None
) -> Iterator[np.ndarray]:
    """Super-resolve the frames of a chunk whose output is kept.

    Args:
        network: Maps clips ``(1, T, C, H, W)`` in 0..1 to clips, or windows to their middle frames,
            ``(1, C, sH, sW)``, or to all of their frames.
        chunk: Frames ``(H, W, C)``, RGB or grey, of any type that `decode_image` returns.
        window: See `Chunking`.

    Yields:
        Frames ``(sH, sW, C)`` uint8, RGB or grey.

    Raises:
        ImageError: The clip is shorter than the window.
    """
    clip = np.stack([to_unit_range(frame) for frame in chunk.frames])
    low = torch.from_numpy(np.ascontiguousarray(clip.transpose(0, 3, 1, 2)))[None]
    numbers = range(chunk.first, chunk.first + chunk.count)
    if window is None:
        made = network(low)[0]
        for number in numbers:
            yield _to_pixels(made[number])
        return
    count = low.shape[1]
    if count < window:
        raise ImageError(
            f"the clip has {counted(count, 'frames')}, but the network takes windows of {window}"
        )
    for low_window in windows_of(low, window, numbers):
        made = network(low_window)
        if made.dim() == CLIP_AXES:
            made = middle_frame(made)
        yield _to_pixels(made[0])


def windows_of(clip: Tensor, window: int, numbers: Iterable[int]) -> Iterator[Tensor]:
    """The windows around some frames; at its ends a clip is mirrored as in BasicSR's test sets.

    Args:
        clip: ``(B, T, C, H, W)``.
        window: Frames of a window, an odd number.
        numbers: Which frames are in the middle.

    Yields:
        ``(B, window, C, H, W)``.
    """
    for number in numbers:
        indices = generate_frame_indices(number, clip.shape[1], window, "reflection")
        yield clip[:, indices]


def _to_pixels(frame: Tensor) -> np.ndarray:
    values = frame.clamp(0, 1) * WHITE
    return values.round().byte().permute(1, 2, 0).cpu().numpy()


def upscale_clip(
    network: Callable[[Tensor], Tensor],
    source: Path,
    out: Path,
    chunking: Chunking,
    channels: int = RGB,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
) -> Iterator[int]:
    """Super-resolve a folder of frames or a video file, to PNG files numbered from 0.

    Chunks whose frames are all there are left out, so that a run that was killed can go on.

    Args:
        network: See `run_chunk`.
        source: Folder of frames or video file.
        out: Folder for the frames, named by eight digits.
        chunking: How the clip is cut.
        channels: 3 for RGB networks, 1 for grey ones.
        max_pixels: Larger frames are rejected.
        overwrite: Whether to make frames anew that are there, and to remove those of a longer clip
            that was made there before.

    Yields:
        Pixels of each frame, once it is written.

    Raises:
        ImageError: The clip is missing, broken, shorter than the window, or has colours that the
            network doesn't take.
        AdaBMError: A file can't be written.
    """
    remove_temporaries(out)
    number = 0
    read = read_clip(source, channels=channels, max_pixels=max_pixels, only_grey=channels == GREY)
    for chunk in split_clip(read, chunking.kept, chunking.reach):
        paths = [_frame_path(out, number + offset) for offset in range(chunk.count)]
        number += chunk.count
        wanted = [path for path in paths if overwrite or not is_file(path)]
        if not wanted:
            continue
        made = run_chunk(network, chunk, chunking.window)
        for path, pixels in zip(paths, made, strict=True):
            if path not in wanted:
                continue
            write_image(np.ascontiguousarray(pixels[..., ::-1]), path)
            height, width = pixels.shape[:2]
            yield height * width
    if overwrite:
        _remove_frames_from(number, out)


def _frame_path(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.png"


def _remove_frames_from(number: int, folder: Path) -> None:
    """Remove the frames of a clip from a number on, and nothing else that lies beside them."""
    path = _frame_path(folder, number)
    # Up to a gap, which `upscale_clip` leaves none.
    while is_file(path) and not path.is_symlink():
        path.unlink()
        number += 1
        path = _frame_path(folder, number)
