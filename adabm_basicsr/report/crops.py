"""Where quantization hurts most and where least: crops of each version side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from adabm_basicsr.files import atomic_path
from adabm_basicsr.report.figures import FULL, VERSIONS
from adabm_basicsr.report.formats import MISSING, format_figure, title
from adabm_basicsr.runs.pictures import LOW, TRUTH, PictureStore

CROP = 112  # pixels of the output
GAP = 4  # between them in a picture of all
SHOWN = 3  # crops of either kind
SHOWN_SIZE, HEAD = 2.0, 0.5  # inches of a crop and of the line above, in that picture
AMPLIFIED = 8  # factor on the error that is shown
ERROR = "error"
COLUMNS = (LOW, *VERSIONS, TRUTH, ERROR)


@dataclass
class Place:
    """Where a crop lies.

    Attributes:
        set: Name of the set.
        image: Name of the image.
        top: Its upper edge, in pixels of the output.
        left: Its left edge.
        size: Its height and width.
        mse: Mean squared error of the quantized against the full-precision output, in squares of 0..255.
    """

    set: str
    image: str
    top: int
    left: int
    size: int
    mse: float

    def describe(self, kind: str) -> dict:
        """As ``report.json`` has it: its ``kind``, worst or best, and ``self_psnr`` in dB (None: no error)."""
        psnr = 10 * math.log10(255**2 / self.mse) if self.mse > 0 else None
        return {"kind": kind, **vars(self), "self_psnr": psnr}


def find_crops(store: PictureStore, sets: list[str], own: str) -> list[dict]:
    """The crops that differ most and least from full precision, one of each kind per image where there are enough.

    Args:
        store: The run's pictures.
        sets: Names of its sets.
        own: Which version its network is.
    """
    worst, best = [], []
    for name in sets if own != FULL else ():
        for image in store.names(name, own):
            full, mine = store.read(name, FULL, image), store.read(name, own, image)
            if full is not None:
                errors, size = crop_errors(full, mine)
                worst += _extremes(errors, size, name, image, -1)
                best += _extremes(errors, size, name, image, 1)[:1]
    worst = sorted(worst, key=lambda place: -place.mse)[:SHOWN]
    best = sorted(best, key=lambda place: place.mse)[:SHOWN]
    return [place.describe("worst") for place in worst] + [
        place.describe("best") for place in reversed(best)
    ]


def crop_errors(full: np.ndarray, mine: np.ndarray) -> tuple[np.ndarray, int]:
    """Mean squared error of every square crop, by its upper left corner, ``(H - size + 1, W - size + 1)``; its size."""
    size = min(CROP, *full.shape[:2])
    error = np.square(full.astype(np.float32) - mine).mean(2)
    boxes = cv2.boxFilter(
        error, cv2.CV_32F, (size, size), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT
    )
    return boxes[: full.shape[0] - size + 1, : full.shape[1] - size + 1], size


def _extremes(errors: np.ndarray, size: int, name: str, image: str, sign: int) -> list[Place]:
    """The two places of largest (``sign`` -1) or smallest (1) error that don't overlap."""
    errors, places = sign * errors, []
    for _ in range(2):
        top, left = (int(at) for at in np.unravel_index(errors.argmin(), errors.shape))
        if not np.isfinite(errors[top, left]):
            break
        places.append(
            Place(name, image, top, left, size, max(float(sign * errors[top, left]), 0.0))
        )
        errors[max(top - size + 1, 0) : top + size, max(left - size + 1, 0) : left + size] = np.inf
    return places


def cut(store: PictureStore, crop: Mapping, own: str) -> dict[str, np.ndarray]:
    """The crop of each version that there is, by column, ``(size, size, 3)`` uint8 RGB."""
    name, image = crop["set"], crop["image"]
    pictures = {column: store.read(name, column, image) for column in (LOW, *VERSIONS, TRUTH)}
    pictures = {column: picture for column, picture in pictures.items() if picture is not None}
    full = pictures[FULL]
    if LOW in pictures:
        # LR pixels stay visible: interpolated, they would look better than what the networks are given.
        pictures[LOW] = cv2.resize(
            pictures[LOW], full.shape[1::-1], interpolation=cv2.INTER_NEAREST
        )
    error = np.abs(pictures[own].astype(int) - full) * AMPLIFIED
    pictures[ERROR] = error.clip(0, 255).astype(np.uint8)
    rows, columns = (slice(crop[side], crop[side] + crop["size"]) for side in ("top", "left"))
    return {column: pictures[column][rows, columns] for column in COLUMNS if column in pictures}


def crop_columns(rows: list[dict[str, np.ndarray]]) -> list[str]:
    """The columns that any of the crops has: sets without ground truth lack that one."""
    return [column for column in COLUMNS if any(column in row for row in rows)]


def column_title(column: str) -> str:
    """What a column of crops is called."""
    return f"error against\nfull precision x {AMPLIFIED}" if column == ERROR else title(column)


def draw_crops(
    rows: list[dict[str, np.ndarray]], versions: Mapping[str, Mapping], path: Path
) -> None:
    """Draw crops, a row each, under the PSNR and bits of each version, and write them as PNG.

    Args:
        rows: For each crop its versions by column.
        versions: Metrics of the versions; none where the crops are of several sets.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    columns, step = crop_columns(rows), CROP + GAP
    width, height = SHOWN_SIZE * len(columns), SHOWN_SIZE * len(rows)
    figure = Figure(figsize=(width, height + HEAD))
    axes = figure.add_axes((0, 0, 1, height / (height + HEAD)))  # one for all: each costs time
    axes.imshow(_sheet(rows, columns), interpolation="nearest")
    axes.axis("off")
    for i, column in enumerate(columns):
        text = f"{column_title(column)}\n{_caption(versions.get(column))}".strip()
        axes.text(i * step + CROP / 2, -GAP, text, ha="center", va="bottom", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _sheet(rows: list[dict[str, np.ndarray]], columns: list[str]) -> np.ndarray:
    """All crops on white, ``(H, W, 3)`` uint8."""
    step = CROP + GAP
    sheet = np.full((len(rows) * step - GAP, len(columns) * step - GAP, 3), 255, np.uint8)
    for top, row in zip(range(0, len(sheet), step), rows):
        for left, column in zip(range(0, sheet.shape[1], step), columns):
            if column in row:
                crop = cv2.resize(row[column], (CROP, CROP), interpolation=cv2.INTER_NEAREST)
                sheet[top : top + CROP, left : left + CROP] = crop
    return sheet


def _caption(metrics: Mapping | None) -> str:
    if metrics is None:
        return ""
    psnr = f"{metrics['psnr']:.2f} dB, " if metrics.get("psnr") is not None else ""
    return psnr + (f"{format_figure('fab', metrics['fab'])} bits" if "fab" in metrics else MISSING)
