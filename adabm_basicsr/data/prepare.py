"""``adabm-basicsr prepare``: low-resolution images by BasicSR's MATLAB-style bicubic, from high-resolution ones."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from adabm_basicsr.data.headers import MAX_PIXELS, add_max_pixels, check_max_pixels
from adabm_basicsr.data.images import list_images, read_image, to_unit_range
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import atomic_path


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic LR image of an HR one, as MATLAB's ``imresize`` and BasicSR make it.

    Args:
        image: ``(H, W, C)`` of any type that `decode_image` returns; both sides multiples of ``scale``.
        scale: Factor, at least 1.

    Returns:
        ``(H // scale, W // scale, C)`` uint8.
    """
    from basicsr.utils.matlab_functions import imresize

    small = imresize(to_unit_range(image), 1 / scale)
    return (small.clip(0, 1) * 255).round().astype(np.uint8)


def mod_crop(image: np.ndarray, scale: int) -> np.ndarray:
    """``image`` without the lower and right pixels that exceed a multiple of ``scale``."""
    height, width = (side - side % scale for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def prepare(
    hr: Path, scale: int, out: Path, mod: Path | None = None, max_pixels: int = MAX_PIXELS
) -> list[Path]:
    """Write the LR image of every image in ``hr``, by the same name as PNG.

    Args:
        hr: Folder of HR images.
        scale: Factor, at least 1.
        out: New folder, or new LMDB (``NAME.lmdb``), for the LR images.
        mod: New folder for the HR images cropped to multiples of ``scale``, as PNG: pairs with ``out``.
        max_pixels: Larger images are refused: they may be made to fill the memory.

    Raises:
        AdaBMError: A folder is missing or empty, an image is broken or too small, or a target is not empty.
    """
    paths = list_images(hr, "--hr")
    _check_names(paths, keys=out.suffix == ".lmdb")
    check_max_pixels("--max-pixels", max_pixels)
    if mod is not None and mod.resolve() == out.resolve():
        raise AdaBMError(f"--mod: {mod} is the same as --out")
    for key, target in (("--out", out), ("--mod", mod)):
        if (
            target is not None
            and target.exists()
            and (not target.is_dir() or any(target.iterdir()))
        ):
            raise AdaBMError(f"{key}: {target} exists and is not an empty folder")
    folder = out.with_suffix(".lmdb.images") if out.suffix == ".lmdb" else out
    images = ((path, read_image(path, max_pixels=max_pixels)) for path in paths)
    progress = tqdm(images, "Bicubic", len(paths), unit="image", disable=None)
    with _all_or_nothing(folder, mod):
        written = [_prepare_one(path, image, scale, folder, mod) for path, image in progress]
        if folder != out:
            _to_lmdb(folder, written, out)
            shutil.rmtree(folder)
    return written


@contextmanager
def _all_or_nothing(*folders: Path | None) -> Iterator[None]:
    """Remove the new folders if it fails: half of the images would pass for all of them."""
    try:
        yield
    except BaseException:
        for folder in filter(None, folders):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_names(paths: list[Path], keys: bool) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        if keys and (not path.stem.isascii() or "." in path.stem):
            raise AdaBMError(
                f"--hr: {path.name} makes no key of an LMDB; name it in ASCII, with one dot"
            )
        if path.stem in seen:
            raise AdaBMError(
                f"--hr: {seen[path.stem].name} and {path.name} would both become {path.stem}.png"
            )
        seen[path.stem] = path


def _prepare_one(path: Path, image: np.ndarray, scale: int, folder: Path, mod: Path | None) -> Path:
    if min(image.shape[:2]) < scale:
        raise AdaBMError(
            f"image {path} of {image.shape[1]}x{image.shape[0]} pixels is smaller than the scale {scale}"
        )
    image = mod_crop(image, scale)
    if mod is not None:
        _write_png(mod / f"{path.stem}.png", image)
    return _write_png(folder / f"{path.stem}.png", downscale(image, scale))


def _write_png(path: Path, image: np.ndarray) -> Path:
    image = (to_unit_range(image) * 255).round().astype(np.uint8)
    with atomic_path(path) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(f"OpenCV could not write {path.name}")
    return path


def _to_lmdb(folder: Path, images: list[Path], out: Path) -> None:
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    make_lmdb_from_imgs(
        str(folder), str(out), [path.name for path in images], [path.stem for path in images]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr prepare``."""
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr prepare", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--hr", type=Path, required=True, help="folder of high-resolution images")
    parser.add_argument("--scale", type=int, required=True, choices=range(1, 9), metavar="1..8")
    parser.add_argument("--out", type=Path, required=True, help="new folder, or NAME.lmdb")
    parser.add_argument(
        "--mod", type=Path, help="new folder for the HR images, cropped to multiples of the scale"
    )
    add_max_pixels(parser)
    args = parser.parse_args(argv)
    written = prepare(args.hr, args.scale, args.out, args.mod, args.max_pixels)
    print(f"{len(written)} images of scale 1/{args.scale} in {args.out}")
