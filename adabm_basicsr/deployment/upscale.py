"""Super-resolves images and clips with a quantized network, in torch or in a runtime."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adabm_basicsr.data.frames import VIDEO_EXTENSIONS, list_clips
from adabm_basicsr.data.headers import MAX_PIXELS
from adabm_basicsr.data.images import (
    EXTENSIONS,
    GREY,
    list_images,
    read_pixels,
    to_grey,
    to_unit_range,
)
from adabm_basicsr.deployment.chunks import Chunking, upscale_clip
from adabm_basicsr.deployment.load import NCNN_SUFFIX, ONNX_SUFFIX, load_network
from adabm_basicsr.deployment.runtimes import DEFAULT_RUNTIME
from adabm_basicsr.deployment.tiles import Block, finished_blocks
from adabm_basicsr.errors import AdaBMError, ImageError, OptionError, first_line, why_link_is_broken
from adabm_basicsr.files import atomic_path, exists, is_file, is_folder
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.clips import Clips
from adabm_basicsr.quantization.user_code import users_code

DEFAULT_TILE = 128  # EDSR x4 then stays below 1 GB, and isn't slower than with larger ones
GREY_ALPHA, BGR_ALPHA = 2, 4  # channels
DEEP_EXTENSIONS = {".png", ".tif", ".tiff"}  # that hold 16 bits
WITHOUT_ALPHA = {".jpg", ".jpeg", ".bmp", ".ppm", ".pgm"}
COLOUR_ALONE = ".ppm"
GREY_ALONE = ".pgm"
QUALITY = {
    ".jpg": cv2.IMWRITE_JPEG_QUALITY,
    ".jpeg": cv2.IMWRITE_JPEG_QUALITY,
    ".webp": cv2.IMWRITE_WEBP_QUALITY,
}
BEST_LOSSY = 95
Job = tuple[Path, Path]  # an image, and the file that is made of it; or a clip and a folder
# Of one image or clip, as `users_code` leaves them; memory that ran out is one of the latter two.
FAILURES = (AdaBMError, MemoryError, RuntimeError)


class Upscaler(Protocol):
    """A network that maps ``(B, C, H, W)`` in 0..1 to the same at its scale, or takes clips.

    Attributes:
        in_channels: Channels of the images that it takes.
        clips: Clips that it takes; None of one that takes images.
    """

    in_channels: int
    clips: Clips | None

    def __call__(self, image: Tensor) -> Tensor:
        """Super-resolve ``image``."""


class Tiling(NamedTuple):
    """How an image is cut, see `finished_blocks`.

    Attributes:
        tile: Largest height and width of a tile, in pixels of the image.
        overlap: Pixels that neighbouring tiles share.
        batch: Tiles that are computed at once.
    """

    tile: int
    overlap: int
    batch: int = 1


@dataclass
class Outcome:
    """What became of a list of images or clips.

    Attributes:
        unit: What they are, in the plural.
        upscaled: How many were made; of clips those of which frames were made.
        existed: How many were left alone, as their results existed.
        failed: Why others failed, in a line each.
        pixels: Of all results that were made.
        started: Time of the start, as `time.perf_counter` has it.
    """

    unit: str = "images"
    upscaled: int = 0
    existed: int = 0
    failed: dict[Path, str] = field(default_factory=dict)
    pixels: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def speed(self) -> str:
        """Megapixels so far, and per second."""
        megapixels = self.pixels / 1e6
        per_second = megapixels / self.seconds
        return f"{megapixels:.1f} megapixels, {per_second:.2f} megapixels per second"

    @contextmanager
    def note_failure(self, source: Path) -> Iterator[None]:
        """Within this context an image or clip is made; an error fails it, and not the rest.

        Args:
            source: The image or clip.
        """
        try:
            with users_code(None, f"{source} cannot be upscaled"):
                yield
        except FAILURES as error:
            self.failed[source] = first_line(error)

    def check(self) -> None:
        """Check that nothing failed.

        Raises:
            AdaBMError: Something did; the message has a line for each image.
        """
        if not self.failed:
            return
        lines = []
        for source, reason in self.failed.items():
            is_named = str(source) in reason
            lines.append(reason if is_named else f"{source}: {reason}")
        total = self.upscaled + self.existed + len(self.failed)
        raise AdaBMError(f"{len(lines)} of {total} {self.unit} failed:\n  " + "\n  ".join(lines))


def plan_outputs(inputs: Sequence[str], out: Path, extension: str | None = None) -> list[Job]:
    """Which file becomes which.

    Args:
        inputs: Files, folders and patterns. A file that several of them name is taken once.
        out: A folder; or a file, if a single file is put in.
        extension: Of the files to write, such as ``png``; those of the inputs by default.

    Raises:
        AdaBMError: An input doesn't exist, two become the same file, or one would be overwritten by
            its own result.
    """
    sources: list[Path] = []
    for given in inputs:
        sources += _find(given)
    if extension is not None and f".{extension}".lower() not in EXTENSIONS:
        valid = ", ".join(sorted(ending.removeprefix(".") for ending in EXTENSIONS))
        raise OptionError(f"--ext: {extension!r} is no image format; valid: {valid}")
    jobs = _name_outputs(_each_once(sources), out, extension)
    _check_jobs(jobs)
    return jobs


def plan_clips(inputs: Sequence[str], out: Path) -> list[Job]:
    """Which clip becomes which folder of frames.

    Args:
        inputs: Video files, folders of frames, folders of such, and patterns.
        out: A folder; below it each clip gets one of its own name.

    Raises:
        AdaBMError: An input doesn't exist or is no clip, two have the same name, or results would
            lie among the inputs.
    """
    if exists(out) and not is_folder(out):
        raise OptionError(f"--out: {out} is a file; frames of clips are written to a folder")
    paths = []
    for given in inputs:
        found = [] if exists(given) else sorted(glob.glob(given, recursive=True))  # noqa: PTH207
        # What doesn't exist is named where clips are looked for.
        paths += [Path(name) for name in found or [given]]
    for path in paths:
        if is_folder(path) and out.resolve().is_relative_to(path.resolve()):
            raise OptionError(f"--out: {out} lies in {path}, which is put in; name another folder")
    clips = list_clips(paths, "--input")
    jobs = [(source, out / name) for name, source in clips.items()]
    _check_jobs(jobs)
    return jobs


def _find(given: str) -> list[Path]:
    """The images that an input names."""
    if is_folder(given):
        return list_images(given, "--input")
    # A link that leads nowhere is named with the images that fail; the others are done.
    if is_file(given) or why_link_is_broken(given):
        if Path(given).suffix.lower() in VIDEO_EXTENSIONS:
            raise OptionError(f"--input: {given} is a video, and the network takes images")
        return [Path(given)]
    found = []
    for name in sorted(glob.glob(given, recursive=True)):  # noqa: PTH207 (it may be absolute)
        path = Path(name)
        is_image = path.suffix.lower() in EXTENSIONS
        if is_image and (is_file(path) or why_link_is_broken(path)):
            found.append(path)
    if not found:
        raise OptionError(
            f"--input: {given} is no file, no folder, and no pattern that matches an image"
        )
    return found


def _each_once(sources: list[Path]) -> list[Path]:
    """``sources`` without files that came before under the same name, by whatever way."""
    seen = set()
    kept = []
    for source in sources:
        file = (os.path.realpath(source), source.name)
        if file not in seen:
            seen.add(file)
            kept.append(source)
    return kept


def _name_outputs(sources: list[Path], out: Path, extension: str | None) -> list[Job]:
    is_one_image = out.suffix.lower() in EXTENSIONS and not is_folder(out)
    if is_one_image and len(sources) > 1:
        raise OptionError(
            f"--out: {out} is one file, but {len(sources)} images are put in; name a folder"
        )
    if is_one_image:
        return [(sources[0], out)]
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out: {out} is a file, and none of an image; name a folder")
    jobs = []
    for source in sources:
        name = f"{source.stem}.{extension}" if extension else source.name
        jobs.append((source, out / name))
    return jobs


def _check_jobs(jobs: list[Job]) -> None:
    # Path.resolve raises for links that lead back to themselves.
    inputs = {os.path.realpath(source) for source, _ in jobs}
    made: dict[Path, Path] = {}
    for source, target in jobs:
        if target in made:
            raise OptionError(f"--out: {made[target]} and {source} would both become {target}")
        if os.path.realpath(target) in inputs:
            raise OptionError(
                f"--out: {target} would be overwritten, but is put in itself; "
                f"name another folder or file"
            )
        made[target] = source


def own_share(jobs: list[Job]) -> list[Job]:
    """This process's part of the images, where ``torchrun`` started several."""
    rank = int(os.environ.get("RANK", "0"))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return jobs[rank::processes]


def load_upscaler(
    path: Path,
    custom_imports: Sequence[str] = (),
    runtime: str | None = None,
    threads: int = 0,
    device: str | None = None,
) -> Upscaler:
    """The network of a file, in the runtime or on the device that was asked for.

    Args:
        path: Checkpoint, packed file or ONNX file.
        custom_imports: Modules that register an in-house architecture; importing them runs their
            code.
        runtime: What runs an ONNX file; `DEFAULT_RUNTIME` by default.
        threads: Of the runtime; 0 leaves it to the runtime.
        device: What runs other files; a GPU by default, where there is one.

    Raises:
        AdaBMError: The file can't be read, or the runtime or device isn't there or isn't for it.
    """
    is_onnx = path.suffix == ONNX_SUFFIX
    if runtime and not is_onnx:
        place = "ncnn" if path.suffix == NCNN_SUFFIX else "torch, see --device"
        raise OptionError(f"--runtime: {runtime} runs {ONNX_SUFFIX} files; {path} runs in {place}")
    if device not in (None, "cpu") and path.suffix in (ONNX_SUFFIX, NCNN_SUFFIX):
        raise OptionError(
            f"--device: {device} runs files of torch; {path} runs in an engine, on the CPU"
        )
    network = load_network(path, custom_imports, runtime or DEFAULT_RUNTIME, threads)
    if not isinstance(network, QuantizedNetwork):
        return network
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return _OnDevice(network, device)


class _OnDevice:
    """A torch network that takes and gives tensors in main memory."""

    def __init__(self, network: QuantizedNetwork, device: str) -> None:
        try:
            self.network = network.to(device).eval()
        except (RuntimeError, AssertionError) as error:  # of unknown or absent devices
            raise OptionError(f"--device: {device}: {first_line(error)}") from error
        self.device = device
        self.in_channels = network.in_channels
        self.clips = network.clips

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        return self.network(image.to(self.device)).cpu()


def upscale_files(
    network: Upscaler,
    jobs: Sequence[Job],
    tiling: Tiling,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Super-resolve image files one after the other; a bad one doesn't stop the rest.

    Args:
        network: See `upscale_file`.
        jobs: What `plan_outputs` returned.
        tiling: See `upscale_file`.
        max_pixels: See `upscale_file`.
        overwrite: Whether to make results anew that exist already.
        quiet: Whether to show no progress bar, which only a terminal has in any case.
    """
    outcome = Outcome()
    with tqdm(jobs, unit="image", disable=quiet or None) as bar:
        for source, target in bar:
            if target.exists() and not overwrite:
                outcome.existed += 1
                continue
            with outcome.note_failure(source):
                outcome.pixels += upscale_file(network, source, target, tiling, max_pixels)
                outcome.upscaled += 1
            bar.set_postfix_str(outcome.speed)
    return outcome


def upscale_clips(
    network: Upscaler,
    jobs: Sequence[Job],
    chunking: Chunking,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Super-resolve clips one after the other; a bad one doesn't stop the rest.

    Args:
        network: It takes clips.
        jobs: What `plan_clips` returned.
        chunking: How clips are cut.
        max_pixels: Larger frames are rejected.
        overwrite: Whether to make frames anew that exist already.
        quiet: Whether to show no progress bar, which only a terminal has in any case.
    """
    outcome = Outcome("clips")
    with tqdm(unit="frame", disable=quiet or None) as bar:
        for source, folder in jobs:
            made = 0
            with outcome.note_failure(source):
                for pixels in upscale_clip(
                    network, source, folder, chunking, network.in_channels, max_pixels, overwrite
                ):
                    made += 1
                    outcome.pixels += pixels
                    bar.update()
                    bar.set_postfix_str(outcome.speed)
                if made:
                    outcome.upscaled += 1
                else:
                    outcome.existed += 1
    return outcome


def upscale_file(
    network: Upscaler, source: Path, target: Path, tiling: Tiling, max_pixels: int = MAX_PIXELS
) -> int:
    """Super-resolve one image file, atomically.

    Args:
        network: What super-resolves it.
        source: The image: grey or colour, 8 or 16 bits; alpha is resized along.
        target: The file to write; 16 bits and alpha are kept if its format can hold them.
        tiling: How the image is cut.
        max_pixels: Larger images are rejected: they may be made to fill the memory.

    Returns:
        Pixels of the result.

    Raises:
        AdaBMError: The image can't be read, or the result can't be written.
    """
    image = read_pixels(source, max_pixels)
    kind = target.suffix.lower()
    is_deep = image.dtype != np.uint8 and kind in DEEP_EXTENSIONS
    depth = np.dtype(np.uint16 if is_deep else np.uint8)
    colour, alpha = _split_alpha(image)
    result = upscale_pixels(network, colour, tiling, depth)
    height, width = result.shape[:2]
    if alpha is not None and kind not in WITHOUT_ALPHA:
        resized = cv2.resize(to_unit_range(alpha), (width, height), interpolation=cv2.INTER_CUBIC)
        result = np.dstack([result, _to_integers(resized, depth)])
    content = _encode(result, kind)
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return height * width


def _encode(image: np.ndarray, kind: str) -> bytes:
    """The file of ``kind``, such as ``.png``, of an image ``(H, W, C)``."""
    height, width, channels = image.shape
    if kind == COLOUR_ALONE and channels == GREY:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if kind == GREY_ALONE and channels != GREY:
        raise ImageError(f"{kind} holds grey images, this one has colours; take --ext ppm")
    quality = [QUALITY[kind], BEST_LOSSY] if kind in QUALITY else []
    is_encoded, content = cv2.imencode(kind, image, quality)
    if not is_encoded:
        raise ImageError(f"{kind} can't hold an image of {width}x{height} pixels")
    return content.tobytes()


def _split_alpha(image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    if image.shape[2] in (GREY_ALPHA, BGR_ALPHA):
        return image[..., :-1], image[..., -1]
    return image, None


def upscale_pixels(
    network: Upscaler, image: np.ndarray, tiling: Tiling, depth: np.dtype
) -> np.ndarray:
    """Super-resolve the pixels of an image.

    It is done part by part: what the network gives in float is never kept whole.

    Args:
        network: What super-resolves it.
        image: ``(H, W, C)``, grey or BGR, of any type that `decode_image` returns.
        tiling: How the image is cut.
        depth: Type of the result, uint8 or uint16.

    Returns:
        ``(s * H, s * W, C)``.

    Raises:
        ImageError: The network takes grey images and this is none.
    """
    if network.in_channels == GREY:
        image = to_grey(image)
    height, width, channels = image.shape
    is_grey = channels == GREY
    x = _to_input(image, network.in_channels)
    result = None
    for block in finished_blocks(network, x, *tiling):
        if result is None:
            result = np.empty((height * block.scale, width * block.scale, channels), depth)
        part = _block_pixels(block, is_grey)
        bottom = block.top + part.shape[0]
        right = block.left + part.shape[1]
        result[block.top : bottom, block.left : right] = _to_integers(part, depth)
    assert result is not None  # an image has a block at least
    return result


def _to_input(image: np.ndarray, channels: int) -> Tensor:
    """``(H, W, C)``, grey or BGR, as RGB or repeated grey, ``(1, channels, H, W)`` in 0..1."""
    pixels = image[..., ::-1]
    if image.shape[2] == GREY:
        pixels = np.repeat(image, channels, axis=2)
    channels_first = to_unit_range(pixels).transpose(2, 0, 1)
    return torch.from_numpy(channels_first[None].copy())


def _block_pixels(block: Block, is_grey: bool) -> np.ndarray:
    """``(h, w, C)``, grey or BGR, in 0..1."""
    pixels = block.pixels[0].permute(1, 2, 0).numpy()
    if is_grey:
        return pixels.mean(2, keepdims=True)
    return pixels[..., ::-1]


def _to_integers(values: np.ndarray, depth: np.dtype) -> np.ndarray:
    top = np.iinfo(depth).max
    return (values.clip(0, 1) * top).round().astype(depth)
