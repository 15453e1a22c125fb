"""``adabm-basicsr upscale``: super-resolve images with a quantized network, in torch or in a runtime."""

from __future__ import annotations

import argparse
import glob
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adabm_basicsr.commands.export import add_custom_imports
from adabm_basicsr.data.headers import MAX_PIXELS, add_max_pixels, check_max_pixels
from adabm_basicsr.data.images import EXTENSIONS, list_images, read_pixels, to_unit_range
from adabm_basicsr.deployment.load import ONNX_SUFFIX, load_network
from adabm_basicsr.deployment.runtimes import DEFAULT_RUNTIME, RUNTIMES
from adabm_basicsr.deployment.tiles import DEFAULT_OVERLAP, check_tiles, finished_blocks
from adabm_basicsr.errors import AdaBMError, check_positive
from adabm_basicsr.files import atomic_path
from adabm_basicsr.terminal import add_output_flags

DEFAULT_TILE = 128  # EDSR x4 then stays below 1 GB, and isn't slower than with larger ones
COLOURS = 3
DEEP_EXTENSIONS = {".png", ".tif", ".tiff"}  # that hold 16 bits
WITHOUT_ALPHA = {".jpg", ".jpeg", ".bmp", ".ppm", ".pgm"}
QUALITY = {
    ".jpg": cv2.IMWRITE_JPEG_QUALITY,
    ".jpeg": cv2.IMWRITE_JPEG_QUALITY,
    ".webp": cv2.IMWRITE_WEBP_QUALITY,
}
BEST_LOSSY = 95
Network = Callable[[Tensor], Tensor]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr upscale``."""
    args = _parse(argv)
    check_tiles("upscale", args.tile, args.tile_overlap)
    check_max_pixels("--max-pixels", args.max_pixels)
    check_positive("--batch", args.batch)
    if args.threads < 0:
        raise AdaBMError(
            f"--threads: {args.threads} is not a number of threads, or 0 for the runtime's own choice"
        )
    jobs = _share(plan_outputs(args.input, args.out, args.ext))
    network = _load(args)
    done, skipped, failed, pixels, start = 0, 0, {}, 0, time.perf_counter()
    with tqdm(jobs, unit="image", disable=args.quiet or None) as progress:
        for source, target in progress:
            if target.exists() and not args.overwrite:
                skipped += 1
                continue
            try:
                tiling = args.tile, args.tile_overlap, args.batch
                pixels += upscale_file(network, source, target, *tiling, args.max_pixels)
                done += 1
            except (
                AdaBMError,
                cv2.error,
                RuntimeError,
                MemoryError,
            ) as error:  # one bad image doesn't stop the rest
                failed[source] = (str(error).strip() or type(error).__name__).splitlines()[0]
            progress.set_postfix_str(_speed(pixels, start))
    if args.json:
        seconds = time.perf_counter() - start
        told = {
            "upscaled": done,
            "existed": skipped,
            "failed": {str(source): why for source, why in failed.items()},
        }
        print(json.dumps({**told, "pixels": pixels, "seconds": seconds}))
    elif not args.quiet:
        existed = f"existed already: {skipped}{' (--overwrite makes them anew)' if skipped else ''}"
        print(f"images upscaled: {done}, {_speed(pixels, start)}; {existed}; failed: {len(failed)}")
    if failed:
        told = [
            error if str(source) in error else f"{source}: {error}"
            for source, error in failed.items()
        ]
        raise AdaBMError(f"{len(failed)} of {len(jobs)} images failed:\n  " + "\n  ".join(told))


def plan_outputs(
    inputs: Sequence[str], out: Path, extension: str | None = None
) -> list[tuple[Path, Path]]:
    """Which file becomes which.

    Args:
        inputs: Files, folders and patterns.
        out: A folder; or a file, if a single file is put in.
        extension: Of the files to write, such as ``png``; those of the inputs by default.

    Raises:
        AdaBMError: An input doesn't exist, two become the same file, or one would be overwritten by its own result.
    """
    sources = [path for given in inputs for path in _find(given)]
    if extension is not None and f".{extension}".lower() not in EXTENSIONS:
        raise AdaBMError(
            f"--ext: {extension!r} is no image format; valid: {', '.join(sorted(e[1:] for e in EXTENSIONS))}"
        )
    if out.suffix.lower() in EXTENSIONS and not os.path.isdir(out):
        if len(sources) > 1:
            raise AdaBMError(
                f"--out: {out} is one file, but {len(sources)} images are put in; name a folder"
            )
        planned = [(sources[0], out)]
    elif out.exists() and not out.is_dir():
        raise AdaBMError(f"--out: {out} is a file, and none of an image; name a folder")
    else:
        planned = [
            (path, out / (f"{path.stem}.{extension}" if extension else path.name))
            for path in sources
        ]
    targets: dict[Path, Path] = {}
    inputs = {path.resolve() for path in sources}
    for source, target in planned:
        if target in targets:
            raise AdaBMError(f"--out: {targets[target]} and {source} would both become {target}")
        if target.resolve() in inputs:
            raise AdaBMError(
                f"--out: {target} would be overwritten, but is put in itself; name another folder or file"
            )
        targets[target] = source
    return [(source, target) for target, source in targets.items()]


def _find(given: str) -> list[Path]:
    if os.path.isdir(given):
        return list_images(given, "--input")
    if os.path.isfile(given):
        return [Path(given)]
    found = sorted(Path(name) for name in glob.glob(given, recursive=True))
    found = [path for path in found if path.is_file() and path.suffix.lower() in EXTENSIONS]
    if not found:
        raise AdaBMError(
            f"--input: {given} is no file, no folder, and no pattern that matches an image"
        )
    return found


def _share(jobs: list) -> list:
    """This process's part of the images, where ``torchrun`` started several."""
    return jobs[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]


def upscale_file(
    network: Network,
    source: Path,
    target: Path,
    tile: int,
    overlap: int,
    batch: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Super-resolve one image file, atomically.

    Args:
        network: With ``in_channels``; maps ``(B, C, H, W)`` in 0..1 to the same at its scale.
        source: The image: grey or colour, 8 or 16 bits; alpha is resized along.
        target: The file to write; 16 bits and alpha are kept if its format can hold them.
        tile: See `finished_blocks`.
        overlap: See `finished_blocks`.
        batch: See `finished_blocks`.
        max_pixels: Larger images are refused: they may be made to fill the memory.

    Returns:
        Pixels of the result.

    Raises:
        AdaBMError: The image can't be read, or the result can't be written.
    """
    image = read_pixels(source, max_pixels)
    kind = target.suffix.lower()
    deep = image.dtype != np.uint8 and kind in DEEP_EXTENSIONS
    colour, alpha = _split_alpha(image)
    result = upscale_pixels(network, colour, tile, overlap, np.uint16 if deep else np.uint8, batch)
    if alpha is not None and kind not in WITHOUT_ALPHA:
        resized = cv2.resize(
            to_unit_range(alpha), result.shape[1::-1], interpolation=cv2.INTER_CUBIC
        )
        result = np.dstack([result, _to_integers(resized, result.dtype)])
    encoded, content = cv2.imencode(
        kind, result, [QUALITY[kind], BEST_LOSSY] if kind in QUALITY else []
    )
    if not encoded:
        raise AdaBMError(
            f"{kind} can't hold an image of {result.shape[1]}x{result.shape[0]} pixels"
        )
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return result.shape[0] * result.shape[1]


def _split_alpha(image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    alpha = image[..., -1] if image.shape[2] in (2, COLOURS + 1) else None
    return (image if alpha is None else image[..., :-1]), alpha


def upscale_pixels(
    network: Network, image: np.ndarray, tile: int, overlap: int, kind: type, batch: int = 1
) -> np.ndarray:
    """Super-resolve the pixels of an image, part by part: what the network gives in float is never kept whole.

    Args:
        network: See `upscale_file`.
        image: ``(H, W, C)``, grey or BGR, of any type that `decode_image` returns.
        tile: See `finished_blocks`.
        overlap: See `finished_blocks`.
        kind: Type of the result, ``np.uint8`` or ``np.uint16``.
        batch: See `finished_blocks`.

    Returns:
        ``(s * H, s * W, C)``.

    Raises:
        AdaBMError: The network takes grey images and this is none.
    """
    grey = image.shape[2] == 1
    if network.in_channels == 1 and not grey:
        raise AdaBMError("the network takes grey images, this one has colours")
    pixels = np.repeat(image, network.in_channels, axis=2) if grey else image[..., ::-1]
    x = torch.from_numpy(to_unit_range(pixels).transpose(2, 0, 1)[None].copy())
    result = None
    for block in finished_blocks(network, x, tile, overlap, batch):
        if result is None:
            result = np.empty(
                [size * block.scale for size in image.shape[:2]] + [image.shape[2]], kind
            )
        part = block.pixels[0].permute(1, 2, 0).numpy()
        part = part.mean(2, keepdims=True) if grey else part[..., ::-1]
        rows, columns = (
            slice(at, at + size) for at, size in zip((block.top, block.left), part.shape)
        )
        result[rows, columns] = _to_integers(part, kind)
    return result


def _to_integers(values: np.ndarray, kind: type) -> np.ndarray:
    top = np.iinfo(kind).max
    return (values.clip(0, 1) * top).round().astype(kind)


def _speed(pixels: int, start: float) -> str:
    return f"{pixels / 1e6:.1f} megapixels, {pixels / 1e6 / (time.perf_counter() - start):.2f} megapixels per second"


def _load(args: argparse.Namespace) -> Network:
    """The network of the file, in the runtime or on the device that was asked for."""
    if args.runtime and args.model.suffix != ONNX_SUFFIX:
        raise AdaBMError(
            f"--runtime: {args.runtime} runs {ONNX_SUFFIX} files; {args.model} runs in torch, see --device"
        )
    if args.device not in (None, "cpu") and args.model.suffix == ONNX_SUFFIX:
        raise AdaBMError(
            f"--device: {args.device} runs files of torch; {args.model} runs in a --runtime, on the CPU"
        )
    network = load_network(
        args.model, args.custom_imports, args.runtime or DEFAULT_RUNTIME, args.threads
    )
    if not isinstance(network, torch.nn.Module):
        return network
    return _OnDevice(network, args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


class _OnDevice:
    """A torch network that takes and gives tensors in main memory."""

    def __init__(self, network: torch.nn.Module, device: str) -> None:
        try:
            self.network = network.to(device).eval()
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # torch's own errors of unknown or absent devices
            raise AdaBMError(f"--device: {device}: {str(error).splitlines()[0]}") from error
        self.device, self.in_channels = device, network.in_channels

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        return self.network(image.to(self.device)).cpu()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr upscale", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "-m", "--model", type=Path, required=True, help=".onnx, packed file or checkpoint (.pth)"
    )
    parser.add_argument(
        "-i",
        "--input",
        nargs="+",
        required=True,
        help="images, folders or patterns such as '*.png'",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="folder to write to, or a file for a single image",
    )
    parser.add_argument(
        "--ext", help="format of the results, such as png (default: that of each image)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make results anew that exist already"
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=DEFAULT_TILE,
        help="largest tile in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--tile-overlap",
        type=int,
        default=DEFAULT_OVERLAP,
        help="pixels that tiles share (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="tiles that are computed at once (default: 1)"
    )
    parser.add_argument(
        "--runtime",
        choices=sorted(RUNTIMES),
        help=f"what runs .onnx files (default: {DEFAULT_RUNTIME})",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="of the runtime (default: its own choice)"
    )
    parser.add_argument(
        "--device", help="what runs other files: cpu, cuda, ... (default: cuda where there is one)"
    )
    add_output_flags(parser)
    add_max_pixels(parser)
    add_custom_imports(parser)
    return parser.parse_args(argv)
