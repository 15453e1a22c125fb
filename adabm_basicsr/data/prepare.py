"""``adabm-basicsr prepare``: low-resolution images by BasicSR's MATLAB-style bicubic, from high-resolution ones."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from adabm_basicsr.data.images import decode_image, list_images, to_unit_range
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import atomic_path


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic LR image of an HR one, as MATLAB's ``imresize`` and BasicSR make it.

    Args:
        image: ``(H, W, C)`` uint8 RGB; cropped to a multiple of ``scale``.
        scale: Factor, at least 1.

    Returns:
        ``(H // scale, W // scale, C)`` uint8.
    """
    from basicsr.utils.matlab_functions import imresize

    height, width = (side - side % scale for side in image.shape[:2])
    small = imresize(np.ascontiguousarray(to_unit_range(image[:height, :width])), 1 / scale)
    return (small.clip(0, 1) * 255).round().astype(np.uint8)


def prepare(hr: Path, scale: int, out: Path) -> list[Path]:
    """Write the LR image of every image in ``hr``, by the same name as PNG, to the folder or LMDB ``out``.

    Raises:
        AdaBMError: A folder is missing or empty, an image is broken or too small, or ``out`` is not empty.
    """
    paths = list_images(hr, "--hr")
    _check_names(paths)
    lmdb = out.suffix == ".lmdb"
    folder = out.with_suffix(".lmdb.images") if lmdb else out
    if (out if lmdb else folder).exists() and any(out.iterdir()):
        raise AdaBMError(f"--out: {out} is not empty")
    written = [_write_small(path, scale, folder) for path in tqdm(paths, desc="Bicubic", unit="image", disable=None)]
    if lmdb:
        _to_lmdb(folder, written, out)
        shutil.rmtree(folder)
    return written


def _check_names(paths: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise AdaBMError(f"--hr: {seen[path.stem].name} and {path.name} would both become {path.stem}.png")
        seen[path.stem] = path


def _write_small(path: Path, scale: int, folder: Path) -> Path:
    image = decode_image(path.read_bytes(), str(path))
    if min(image.shape[:2]) < scale:
        raise AdaBMError(f"image {path} of {image.shape[1]}x{image.shape[0]} pixels is smaller than the scale {scale}")
    target = folder / f"{path.stem}.png"
    with atomic_path(target) as temporary:
        cv2.imwrite(str(temporary), cv2.cvtColor(downscale(image, scale), cv2.COLOR_RGB2BGR))
    return target


def _to_lmdb(folder: Path, images: list[Path], out: Path) -> None:
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    make_lmdb_from_imgs(str(folder), str(out), [path.name for path in images], [path.stem for path in images])


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr prepare``."""
    parser = argparse.ArgumentParser(prog="adabm-basicsr prepare", description=__doc__)
    parser.add_argument("--hr", type=Path, required=True, help="folder of high-resolution images")
    parser.add_argument("--scale", type=int, required=True, choices=range(1, 9), metavar="1..8")
    parser.add_argument("--out", type=Path, required=True, help="new folder, or NAME.lmdb")
    args = parser.parse_args(argv)
    written = prepare(args.hr, args.scale, args.out)
    print(f"{len(written)} images of scale 1/{args.scale} in {args.out}")
