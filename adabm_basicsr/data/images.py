"""Finds and decodes images: colour, grey, with alpha, 8 or 16 bits."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from adabm_basicsr.data.headers import MAX_PIXELS, TIFF_STARTS, check_header
from adabm_basicsr.errors import AdaBMError, not_found
from adabm_basicsr.files import atomic_path

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
OPAQUE = 255
JPEG_START = b"\xff\xd8"
EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF")  # in JPEG, PNG and WebP files
# As the file's EXIF says it is to be shown, in its own depth, without alpha.
AS_SHOWN = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH


def list_images(folder: str | Path, key: str = "folder") -> list[Path]:
    """Image files directly in ``folder``, sorted by name; ``key`` is the option that named it.

    Raises:
        AdaBMError: The folder is absent or holds no image.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise not_found(f"{key}: folder", folder)
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise AdaBMError(f"{key}: folder {folder} cannot be read: {error.strerror}") from error
    paths = sorted(path for path in files if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise AdaBMError(
            f"{key}: folder {folder} holds no images ({', '.join(sorted(EXTENSIONS))})"
        )
    return paths


def read_image(path: Path, channels: int = 3, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read and decode an image file; see `decode_image`.

    Raises:
        AdaBMError: The file can't be read or decoded.
    """
    return decode_image(_content(path), str(path), channels, max_pixels)


def read_pixels(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read and decode an image file as it is; see `decode_pixels`.

    Raises:
        AdaBMError: The file can't be read or decoded.
    """
    return decode_pixels(_content(path), str(path), max_pixels)


def _content(path: Path) -> bytes:
    if os.path.exists(path) and not os.path.isfile(
        path
    ):  # a pipe or a device would be read for ever
        raise AdaBMError(f"image {path} cannot be read: it is no file")
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise AdaBMError(
            f"image {path} cannot be read: {getattr(error, 'strerror', error)}"
        ) from error


def write_image(image: np.ndarray, path: str | Path) -> None:
    """Write an image, ``(H, W, 3)`` BGR or ``(H, W)``, atomically; the name's ending says in which format.

    Raises:
        AdaBMError: The file can't be written; a previous one is left whole.
    """
    content = cv2.imencode(Path(path).suffix, image)[1]
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def decode_image(
    content: bytes, name: str, channels: int = 3, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an image file, whatever its name says that it is, rotated as its EXIF says that it is to be shown.

    Args:
        content: The file's bytes.
        name: What to call it in an error.
        channels: 3 for RGB (grey is repeated), 1 for grey (colour is converted). Alpha is dropped.
        max_pixels: Files of more are not decoded.

    Returns:
        ``(H, W, channels)``, RGB, of the file's own type (uint8, uint16 or float32).

    Raises:
        AdaBMError: The image can't be decoded, is too large or one of several, or has another type or NaN values.
    """
    return _to_channels(decode_pixels(content, name, max_pixels), channels)


def decode_pixels(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file as it is: ``(H, W, C)``, grey, BGR or BGR with alpha; otherwise as `decode_image`."""
    check_header(content, name, max_pixels)
    image = _decode(content, name)
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise AdaBMError(
            f"image {name} has values of type {image.dtype}; 8-bit, 16-bit and float32 images are read"
        )
    if not np.isfinite(image).all():
        raise AdaBMError(f"image {name} holds NaN or infinite values")
    if image.dtype == np.float32 and not (image.min() >= 0 and image.max() <= 1):
        raise AdaBMError(f"image {name} has float values outside 0..1")
    return image[..., None] if image.ndim == 2 else image


def _decode(content: bytes, name: str) -> np.ndarray:
    """``(H, W)`` or ``(H, W, C)``, turned as it is to be shown."""
    if content.startswith(JPEG_START):
        return _imdecode(content, AS_SHOWN, name)
    image = _imdecode(content, cv2.IMREAD_UNCHANGED, name)
    has_alpha = image.ndim == 3 and image.shape[2] > 3
    if content.startswith(TIFF_STARTS):  # turned already
        # Of 8-bit files OpenCV multiplies alpha into the colours.
        if has_alpha and image.dtype == np.uint8 and (image[..., 3:] != OPAQUE).any():
            raise AdaBMError(
                f"image {name} is a TIFF file with transparent pixels; make it PNG, or drop its alpha"
            )
        return image
    if not any(mark in content for mark in EXIF_MARKS):
        return image
    shown = _imdecode(content, AS_SHOWN, name)
    if not has_alpha:
        return shown
    if not np.array_equal(shown, image[..., :3]):
        raise AdaBMError(
            f"image {name} has alpha and EXIF that turns it; save it as it is to be shown"
        )
    return image


def _imdecode(content: bytes, flags: int, name: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise AdaBMError(f"image {name} is broken or of an unknown format")
    return image


def _to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[2] >= 3:
        image = cv2.cvtColor(
            image[..., :3], cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGR2GRAY
        )
        return image.reshape(*image.shape[:2], channels)
    return np.repeat(image[..., :1], channels, axis=2)


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """Pixels of any type that `decode_image` returns, as float32 in 0..1."""
    if image.dtype == np.float32:
        return image
    return image.astype(np.float32) / np.iinfo(image.dtype).max
