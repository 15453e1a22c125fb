"""Low-resolution images by BasicSR's MATLAB-style bicubic, from high-resolution ones."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from basicsr.utils.matlab_functions import imresize
from tqdm import tqdm

from adabm_basicsr.data.headers import MAX_PIXELS, check_max_pixels
from adabm_basicsr.data.images import list_images, read_image, to_unit_range
from adabm_basicsr.data.new_folders import (
    LMDB_SUFFIX,
    all_or_nothing,
    check_targets,
    to_lmdb,
    write_png,
)
from adabm_basicsr.errors import ImageError


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic LR image of an HR one, as MATLAB's ``imresize`` and BasicSR make it.

    Args:
        image: ``(H, W, C)`` of any type that `decode_image` returns; both sides multiples of
            ``scale``, as `crop_to_scale` makes them.
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
    is_lmdb = out.suffix == LMDB_SUFFIX
    _check_names(paths, is_lmdb)
    check_max_pixels("--max-pixels", max_pixels)
    check_targets(out, mod)
    written = []
    with ExitStack() as folders:
        unfinished = folders.enter_context(all_or_nothing(out))
        unfinished_mod = None
        if mod is not None:
            unfinished_mod = folders.enter_context(all_or_nothing(mod))
        for path in tqdm(paths, "Bicubic", unit="image", disable=None):
            image = read_image(path, max_pixels=max_pixels)
            low = unfinished / f"{path.stem}.png"
            high = None
            if unfinished_mod is not None:
                high = unfinished_mod / low.name
            write_pair(image, f"image {path}", scale, low, high)
            written.append(low)
        if is_lmdb:
            to_lmdb(unfinished, written)
    return [out / path.name for path in written]


def _check_names(paths: list[Path], is_lmdb: bool) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        if is_lmdb and (not path.stem.isascii() or "." in path.stem):
            raise ImageError(
                f"--hr: {path.name} makes no key of an LMDB; name it in ASCII, with one dot"
            )
        if path.stem in seen:
            other = seen[path.stem]
            raise ImageError(
                f"--hr: {other.name} and {path.name} would both become {path.stem}.png"
            )
        seen[path.stem] = path


def write_pair(
    image: np.ndarray, label: str, scale: int, low: Path | None, high: Path | None
) -> None:
    """Write the LR image of an HR one, and the HR one cropped to a multiple of the scale.

    Args:
        image: ``(H, W, 3)`` RGB, of any type that `decode_image` returns.
        label: What to call it in an error.
        scale: Factor, at least 1.
        low: PNG file of the LR image; None to write none.
        high: PNG file of the HR image; None to write none.

    Raises:
        ImageError: The image is too small.
        AdaBMError: A file can't be written.
    """
    image = crop_to_scale(image, label, scale)
    if high is not None:
        write_png(high, image)
    if low is not None:
        write_png(low, downscale(image, scale))


def crop_to_scale(image: np.ndarray, label: str, scale: int) -> np.ndarray:
    """`mod_crop` of an image that is large enough; ``label`` is what to call it in an error.

    Raises:
        ImageError: It is too small.
    """
    height, width = image.shape[:2]
    # Borders are mirrored for bicubic, by more pixels than the scale.
    least = 1 if scale == 1 else 2 * scale
    if min(height, width) < least:
        raise ImageError(
            f"{label} has {width}x{height} pixels; at scale {scale} it has to have at least "
            f"{least}x{least}"
        )
    return mod_crop(image, scale)
