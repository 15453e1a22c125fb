"""Where quantization hurts most and where least: crops of each variant side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adabm_basicsr.files import atomic_path
from adabm_basicsr.report.figures import FULL, VARIANTS
from adabm_basicsr.report.formats import MISSING, format_figure, title
from adabm_basicsr.runs.pictures import LOW, TRUTH, PictureStore

CROP = 112  # pixels of the output
GAP = 4  # between them in a picture of all
STEP = CROP + GAP
SHOWN = 3  # crops of either kind
PER_IMAGE = 2
SHOWN_SIZE = 2.0  # inches of a crop in that picture
HEAD = 0.5  # inches of the line above the crops
AMPLIFIED = 8  # factor on the error that is shown
ERROR = "error"
COLUMNS = (LOW, *VARIANTS, TRUTH, ERROR)
Crop = Mapping[str, np.ndarray]  # pixels by column, RGB


@dataclass
class Place:
    """Where a crop lies.

    Attributes:
        set: Name of the set.
        image: Name of the image.
        top: Its upper edge, in pixels of the output.
        left: Its left edge.
        size: Its height and width.
        mse: Mean squared error of the quantized against the full-precision output, in squares of
            0..255.
    """

    set: str
    image: str
    top: int
    left: int
    size: int
    mse: float

    def describe(self, kind: str) -> dict[str, Any]:
        """As ``report.json`` has it.

        Args:
            kind: ``worst`` or ``best``.

        Returns:
            The attributes, ``kind`` and ``self_psnr`` in dB, which is None where nothing differs.
        """
        self_psnr = None
        if self.mse > 0:
            self_psnr = 10 * math.log10(255**2 / self.mse)
        return {"kind": kind, **asdict(self), "self_psnr": self_psnr}


def find_crops(store: PictureStore, sets: Sequence[str], own: str) -> list[dict[str, Any]]:
    """The crops that differ most and least from full precision, as `Place.describe` has them.

    Args:
        store: The run's pictures.
        sets: Names of its sets.
        own: Which variant its network is.

    Returns:
        At most `SHOWN` of either kind, the worst first.
    """
    if own == FULL:
        return []
    worst: list[Place] = []
    best: list[Place] = []
    for name in sets:
        for image in store.names(name, own):
            full = store.read(name, FULL, image)
            mine = store.read(name, own, image)
            if full is None or mine is None:
                continue
            errors, size = crop_errors(full, mine)
            for corner in _lowest_corners(-errors, size, PER_IMAGE):
                worst.append(_place(name, image, corner, errors, size))
            for corner in _lowest_corners(errors, size, 1):
                best.append(_place(name, image, corner, errors, size))
    worst.sort(key=lambda place: -place.mse)
    best.sort(key=lambda place: place.mse)
    described = [place.describe("worst") for place in worst[:SHOWN]]
    for place in reversed(best[:SHOWN]):
        described.append(place.describe("best"))
    return described


def crop_errors(full: np.ndarray, mine: np.ndarray) -> tuple[np.ndarray, int]:
    """Mean squared error of every square crop.

    Args:
        full: Output in full precision, ``(H, W, 3)`` uint8.
        mine: That of the quantized network.

    Returns:
        The errors by upper left corner, ``(H - size + 1, W - size + 1)``, and the crops' ``size``.
    """
    height, width = full.shape[:2]
    size = min(CROP, height, width)
    error = np.square(full.astype(np.float32) - mine).mean(2)
    means = cv2.boxFilter(
        error, cv2.CV_32F, (size, size), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT
    )
    return means[: height - size + 1, : width - size + 1], size


def _lowest_corners(values: np.ndarray, size: int, count: int) -> list[tuple[int, int]]:
    """Upper left corners of the crops of least value that don't overlap; at most ``count``."""
    left_over = values.copy()
    corners = []
    for _ in range(count):
        top, left = np.unravel_index(left_over.argmin(), left_over.shape)
        if not np.isfinite(left_over[top, left]):
            break
        corners.append((int(top), int(left)))
        rows = slice(max(top - size + 1, 0), top + size)
        columns = slice(max(left - size + 1, 0), left + size)
        left_over[rows, columns] = np.inf
    return corners


def _place(
    name: str,
    image: str,
    corner: tuple[int, int],
    errors: np.ndarray,
    size: int,
) -> Place:
    top, left = corner
    # The box filter may come to a little less than nothing.
    mse = max(float(errors[corner]), 0.0)
    return Place(set=name, image=image, top=top, left=left, size=size, mse=mse)


def cut(store: PictureStore, crop: Mapping, own: str) -> dict[str, np.ndarray]:
    """The crop of each variant that there is, by column, ``(size, size, 3)`` uint8 RGB.

    Args:
        store: The run's pictures.
        crop: As `find_crops` gives it.
        own: Which variant the run's network is.
    """
    pictures = {}
    for column in (LOW, *VARIANTS, TRUTH):
        picture = store.read(crop["set"], column, crop["image"])
        if picture is not None:
            pictures[column] = picture
    full = pictures[FULL]
    if LOW in pictures:
        # LR pixels stay visible: interpolated, they would look better than what the networks are
        # given.
        height, width = full.shape[:2]
        pictures[LOW] = _resized(pictures[LOW], height, width)
    error = np.abs(pictures[own].astype(int) - full) * AMPLIFIED
    pictures[ERROR] = error.clip(0, 255).astype(np.uint8)
    rows = slice(crop["top"], crop["top"] + crop["size"])
    columns = slice(crop["left"], crop["left"] + crop["size"])
    found = {}
    for column in COLUMNS:
        if column in pictures:
            found[column] = pictures[column][rows, columns]
    return found


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels made larger or smaller without blending them."""
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST)


def crop_columns(crops: Sequence[Crop]) -> list[str]:
    """The columns that any of the crops has: sets without ground truth lack that one."""
    return [column for column in COLUMNS if any(column in crop for crop in crops)]


def column_title(column: str) -> str:
    """What a column of crops is called."""
    if column == ERROR:
        return f"error against\nfull precision x {AMPLIFIED}"
    return title(column)


def draw_crops(crops: Sequence[Crop], variants: Mapping[str, Mapping], path: Path) -> None:
    """Draw crops, a row each, under the PSNR and bits of each variant, and write them as PNG.

    Args:
        crops: For each crop its variants by column.
        variants: Metrics of the variants; none where the crops are of several sets.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    columns = crop_columns(crops)
    width = SHOWN_SIZE * len(columns)
    height = SHOWN_SIZE * len(crops)
    figure = Figure(figsize=(width, height + HEAD))
    # One for all, as each costs time.
    axes = figure.add_axes((0, 0, 1, height / (height + HEAD)))
    axes.imshow(_sheet(crops, columns), interpolation="nearest")
    axes.axis("off")
    for index, column in enumerate(columns):
        text = column_title(column)
        if column in variants:
            text = f"{text}\n{_caption(variants[column])}"
        middle = index * STEP + CROP / 2
        axes.text(middle, -GAP, text, ha="center", va="bottom", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _sheet(crops: Sequence[Crop], columns: Sequence[str]) -> np.ndarray:
    """All crops on white, ``(H, W, 3)`` uint8."""
    height = len(crops) * STEP - GAP
    width = len(columns) * STEP - GAP
    sheet = np.full((height, width, 3), 255, np.uint8)
    for row, crop in enumerate(crops):
        for index, column in enumerate(columns):
            if column not in crop:
                continue
            top = row * STEP
            left = index * STEP
            pixels = _resized(crop[column], CROP, CROP)
            sheet[top : top + CROP, left : left + CROP] = pixels
    return sheet


def _caption(metrics: Mapping) -> str:
    bits = MISSING
    if "fab" in metrics:
        bits = f"{format_figure('fab', metrics['fab'])} bits"
    if metrics.get("psnr") is None:
        return bits
    return f"{metrics['psnr']:.2f} dB, {bits}"
