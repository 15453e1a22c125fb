"""Finds and decodes images: colour, grey, with alpha, 8 or 16 bits."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from adabm_basicsr.data.headers import MAX_PIXELS, TIFF_STARTS, check_header
from adabm_basicsr.errors import AdaBMError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
OPAQUE = 255
# As the file's EXIF says it is to be shown, in its own depth, without alpha, CMYK as colours.
AS_SHOWN = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH


def list_images(folder: str | Path, key: str = "folder") -> list[Path]:
    """Image files directly in ``folder``, sorted by name; ``key`` is the option that named it.

    Raises:
        AdaBMError: The folder is absent or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AdaBMError(f"{key}: folder {folder} does not exist")
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise AdaBMError(f"{key}: folder {folder} cannot be read: {error.strerror}") from error
    paths = sorted(path for path in files if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise AdaBMError(f"{key}: folder {folder} holds no images ({', '.join(sorted(EXTENSIONS))})")
    return paths


def read_image(path: Path, channels: int = 3, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read and decode an image file; see `decode_image`.

    Raises:
        AdaBMError: The file can't be read or decoded.
    """
    if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
        raise AdaBMError(f"image {path} cannot be read: it is no file")
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise AdaBMError(f"image {path} cannot be read: {getattr(error, 'strerror', error)}") from error
    return decode_image(content, str(path), channels, max_pixels)


def decode_image(content: bytes, name: str, channels: int = 3, max_pixels: int = MAX_PIXELS) -> np.ndarray:
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
    check_header(content, name, max_pixels)
    image = _decode(content, name)
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise AdaBMError(f"image {name} has values of type {image.dtype}; 8-bit, 16-bit and float32 images are read")
    if not np.isfinite(image).all():
        raise AdaBMError(f"image {name} holds NaN or infinite values")
    if image.dtype == np.float32 and not (image.min() >= 0 and image.max() <= 1):
        raise AdaBMError(f"image {name} has float values outside 0..1")
    return _to_channels(image, channels)


def _decode(content: bytes, name: str) -> np.ndarray:
    """``(H, W)`` or ``(H, W, C)``, BGR; the first three channels are colours."""
    tiff = content.startswith(TIFF_STARTS)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED if tiff else AS_SHOWN)
    except cv2.error:
        image = None
    if image is None:
        raise AdaBMError(f"image {name} is broken or of an unknown format")
    # Of 8-bit TIFF files OpenCV multiplies alpha into the colours.
    if tiff and image.dtype == np.uint8 and image.ndim == 3 and (image[..., 3:] != OPAQUE).any():
        raise AdaBMError(f"image {name} is a TIFF file with transparent pixels; convert it to PNG, or drop its alpha")
    return image


def _to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[2] >= 3:
        image = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGR2GRAY)
        return image.reshape(*image.shape[:2], channels)
    return np.repeat(image[..., :1], channels, axis=2)


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """Pixels of any type that `decode_image` returns, as float32 in 0..1."""
    if image.dtype == np.float32:
        return image
    return image.astype(np.float32) / np.iinfo(image.dtype).max
