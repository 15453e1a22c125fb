"""Writes new folders and LMDBs of images, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from basicsr.utils.lmdb_util import make_lmdb_from_imgs

from adabm_basicsr.data.images import to_unit_range
from adabm_basicsr.errors import OptionError
from adabm_basicsr.files import TEMPORARY_PREFIX, atomic_path

LMDB_SUFFIX = ".lmdb"
ROOM = 10  # times the size of its images that an LMDB may grow to; only what it uses is written
SPARE_ROOM = 1 << 24
UNFINISHED = f"{TEMPORARY_PREFIX}images"


def check_targets(out: Path | None, mod: Path | None) -> dict[str, Path]:
    """The folders that are going to be made, by the options that name them.

    Args:
        out: That of ``--out``, if it is given.
        mod: That of ``--mod``, if it is given.

    Raises:
        OptionError: Both are the same, or there is something at one of them.
    """
    targets = {}
    for key, target in (("--out", out), ("--mod", mod)):
        if target is not None:
            targets[key] = target
    if len({target.resolve() for target in targets.values()}) < len(targets):
        raise OptionError(f"--mod: {mod} is the same as --out")
    for key, target in targets.items():
        check_is_new(key, target)
    return targets


def check_is_new(key: str, target: Path) -> None:
    """Check that nothing is there, or what a killed run left, which is removed.

    Args:
        key: The option that names it, for the message.
        target: A folder that is going to be made.

    Raises:
        OptionError: There is something else.
    """
    if not target.exists():
        return
    if target.is_dir():
        shutil.rmtree(target / UNFINISHED, ignore_errors=True)
    if not target.is_dir() or any(target.iterdir()):
        raise OptionError(f"{key}: {target} exists and is not an empty folder")


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
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


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an RGB image ``(H, W, 3)`` of any type that `decode_image` returns in 8 bits."""
    image = (to_unit_range(image) * 255).round().astype(np.uint8)
    with atomic_path(path) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(f"OpenCV could not write {path.name}")


def to_lmdb(folder: Path, images: list[Path]) -> None:
    """Put images into an LMDB, which takes their place.

    Args:
        folder: Where it is made, an otherwise empty folder.
        images: PNG files in ``folder`` or in folders of it. Keys are their paths from there,
            without the ending.
    """
    made = folder / f"made{LMDB_SUFFIX}"
    names = [path.relative_to(folder).as_posix() for path in images]
    keys = [name.removesuffix(".png") for name in names]
    # BasicSR's own guess goes by the size of the first image.
    map_size = ROOM * sum(path.stat().st_size for path in images) + SPARE_ROOM
    make_lmdb_from_imgs(str(folder), str(made), names, keys, map_size=map_size)
    for path in images:
        path.unlink()
    for below in {path.parent for path in images} - {folder}:
        below.rmdir()
    for path in made.iterdir():
        path.rename(folder / path.name)
    made.rmdir()
