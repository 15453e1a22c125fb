"""Low-resolution images by BasicSR's MATLAB-style bicubic, from high-resolution ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize
from tqdm import tqdm

from adabm_basicsr.data.headers import MAX_PIXELS, check_max_pixels
from adabm_basicsr.data.images import list_images, read_image, to_unit_range
from adabm_basicsr.errors import ImageError, OptionError
from adabm_basicsr.files import atomic_path

LMDB_SUFFIX = ".lmdb"


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic LR image of an HR one, as MATLAB's ``imresize`` and BasicSR make it.

    Args:
        image: ``(H, W, C)`` of any type that `decode_image` returns; both sides multiples of
            ``scale``.
        scale: Factor, at least 1.

    Returns:
        ``(H // scale, W // scale, C)`` uint8.
    """
    small = imresize(to_unit_range(image), 1 / scale)
    return (small.clip(0, 1) * 255).round().astype(np.uint8)


def mod_crop(image: np.ndarray, scale: int) -> np.ndarray:
    """``image`` without the lower and right pixels that exceed a multiple of ``scale``."""
    height, width = image.shape[:2]
    cropped = image[: height - height % scale, : width - width % scale]
    return np.ascontiguousarray(cropped)


def prepare(
    hr: Path, scale: int, out: Path, mod: Path | None = None, max_pixels: int = MAX_PIXELS
) -> list[Path]:
    """Write the LR image of every image in ``hr``, by the same name as PNG.

    Args:
        hr: Folder of HR images.
        scale: Factor, at least 1.
        out: New folder, or new LMDB (``NAME.lmdb``), for the LR images.
        mod: New folder for the HR images cropped to multiples of ``scale``, as PNG: pairs with
            ``out``.
        max_pixels: Larger images are rejected: they may be made to fill the memory.

    Returns:
        The LR images that were written; for an LMDB, as they were before they went into it.

    Raises:
        AdaBMError: A folder is missing or empty, an image is broken or too small, or a target is
            not empty.
    """
    paths = list_images(hr, "--hr")
    to_lmdb = out.suffix == LMDB_SUFFIX
    _check_names(paths, to_lmdb)
    check_max_pixels("--max-pixels", max_pixels)
    if mod is not None and mod.resolve() == out.resolve():
        raise OptionError(f"--mod: {mod} is the same as --out")
    _check_is_new("--out", out)
    if mod is not None:
        _check_is_new("--mod", mod)
    folder = out.with_suffix(".lmdb.images") if to_lmdb else out
    written = []
    with _all_or_nothing(folder, mod):
        for path in tqdm(paths, "Bicubic", unit="image", disable=None):
            image = read_image(path, max_pixels=max_pixels)
            written.append(_prepare_one(path, image, scale, folder, mod))
        if to_lmdb:
            _to_lmdb(folder, written, out)
            shutil.rmtree(folder)
    return written


def _check_is_new(key: str, target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise OptionError(f"{key}: {target} exists and is not an empty folder")


@contextmanager
def _all_or_nothing(*folders: Path | None) -> Iterator[None]:
    """Remove the new folders if it fails: half of the images would pass for all of them."""
    try:
        yield
    except BaseException:
        for folder in folders:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_names(paths: list[Path], to_lmdb: bool) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        if to_lmdb and (not path.stem.isascii() or "." in path.stem):
            raise ImageError(
                f"--hr: {path.name} makes no key of an LMDB; name it in ASCII, with one dot"
            )
        if path.stem in seen:
            other = seen[path.stem]
            raise ImageError(
                f"--hr: {other.name} and {path.name} would both become {path.stem}.png"
            )
        seen[path.stem] = path


def _prepare_one(path: Path, image: np.ndarray, scale: int, folder: Path, mod: Path | None) -> Path:
    height, width = image.shape[:2]
    if min(height, width) < scale:
        raise ImageError(
            f"image {path} of {width}x{height} pixels is smaller than the scale {scale}"
        )
    image = mod_crop(image, scale)
    if mod is not None:
        _write_png(mod / f"{path.stem}.png", image)
    target = folder / f"{path.stem}.png"
    _write_png(target, downscale(image, scale))
    return target


def _write_png(path: Path, image: np.ndarray) -> None:
    image = (to_unit_range(image) * 255).round().astype(np.uint8)
    with atomic_path(path) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(f"OpenCV could not write {path.name}")


def _to_lmdb(folder: Path, images: list[Path], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    names = [path.name for path in images]
    keys = [path.stem for path in images]
    make_lmdb_from_imgs(str(folder), str(out), names, keys)
