"""Low-resolution images by BasicSR's MATLAB-style bicubic, from high-resolution ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize
from tqdm import tqdm

from adabm_basicsr.data.headers import MAX_PIXELS, check_max_pixels
from adabm_basicsr.data.images import list_images, read_image, to_unit_range
from adabm_basicsr.errors import ImageError, OptionError
from adabm_basicsr.files import TEMPORARY_PREFIX, atomic_path

LMDB_SUFFIX = ".lmdb"
ROOM = 10  # times the size of its images that an LMDB may grow to; only what it uses is written
SPARE_ROOM = 1 << 24
UNFINISHED = f"{TEMPORARY_PREFIX}images"


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
        The LR images that were written; for an LMDB, as they would be called in a folder.

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
    written = []
    with ExitStack() as folders:
        unfinished = folders.enter_context(_all_or_nothing(out))
        unfinished_mod = None
        if mod is not None:
            unfinished_mod = folders.enter_context(_all_or_nothing(mod))
        for path in tqdm(paths, "Bicubic", unit="image", disable=None):
            image = read_image(path, max_pixels=max_pixels)
            written.append(_prepare_one(path, image, scale, unfinished, unfinished_mod))
        if to_lmdb:
            _to_lmdb(unfinished, written)
    return [out / path.name for path in written]


def _check_is_new(key: str, target: Path) -> None:
    """Check that nothing is there, or what a killed run left, which is removed."""
    if not target.exists():
        return
    if target.is_dir():
        shutil.rmtree(target / UNFINISHED, ignore_errors=True)
    if not target.is_dir() or any(target.iterdir()):
        raise OptionError(f"{key}: {target} exists and is not an empty folder")


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[Path]:
    """Give a folder within ``folder`` to write to; what it holds moves up in the end.

    If it fails, ``folder`` is removed: half of the images would pass for all of them. If the
    process is killed, the hidden folder is left, which the next run removes.
    """
    unfinished = folder / UNFINISHED
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        for path in unfinished.iterdir():
            path.rename(folder / path.name)
        unfinished.rmdir()
    except BaseException:
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


def _to_lmdb(folder: Path, images: list[Path]) -> None:
    """Put the images into an LMDB, which takes their place in ``folder``."""
    made = folder / f"made{LMDB_SUFFIX}"
    names = [path.name for path in images]
    keys = [path.stem for path in images]
    # BasicSR's own guess goes by the size of the first image.
    map_size = ROOM * sum(path.stat().st_size for path in images) + SPARE_ROOM
    make_lmdb_from_imgs(str(folder), str(made), names, keys, map_size=map_size)
    for path in images:
        path.unlink()
    for path in made.iterdir():
        path.rename(folder / path.name)
    made.rmdir()
