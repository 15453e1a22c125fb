"""The HTML of a report: one file with its pictures, style and script in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from adabm_basicsr.files import atomic_path
from adabm_basicsr.report.crops import Crop, column_title, crop_columns
from adabm_basicsr.report.figures import FULL, own_variant
from adabm_basicsr.report.formats import title
from adabm_basicsr.report.tables import Cell, Table, all_tables, cell, mapped_set
from adabm_basicsr.runs.pictures import LOW, PictureStore
from adabm_basicsr.version import __version__

JPEG_QUALITY = 92  # of the large picture, which shows classes rather than details
CARDS = ("psnr", "self_psnr", "fab", "bitops", "weight_bytes")
PLOTS = {
    "layers": "Bits along the network",
    "complexity": "Complexity of images and bits used",
    "histogram": "Bits used over the validation sets",
    "frames": "Quality and bits over the frames of clips",
    "tradeoff": "Quality against cost of the runs in this folder",
    "settings": "Estimated quality against cost",
    "errors": "Share of the error by layer",
}
# RGB and opacity of simple, middle and complex tiles. Purple and yellow differ for everybody, and
# neither is the colour of a sky; the middle class shows the picture.
CLASS_COLOURS = ((155, 77, 255, 255), (0, 0, 0, 0), (255, 213, 0, 255))
BAR_HEIGHT = 22  # of 24 in the drawing of a distribution


def write_page(
    figures: Mapping,
    crops: Sequence[Crop],
    plots: Mapping[str, Path],
    store: PictureStore,
    path: Path,
) -> None:
    """Write the report as HTML.

    Args:
        figures: What ``report.json`` holds.
        crops: Pixels of its crops by column, RGB.
        plots: File of each plot.
        store: The run's pictures.
        path: File to write.
    """
    html = _template("report.html").render(
        figures=figures,
        version=__version__,
        tables=all_tables(figures),
        cards=_cards(figures),
        crops=_crop_rows(figures["crops"], crops),
        columns=[(column, column_title(column)) for column in crop_columns(crops)],
        frames=_frames(figures, store),
        class_map=_class_map(figures, store),
        plots=_embedded_plots(plots),
        distributions=[_distribution(layer) for layer in figures["layers"]],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def write_tables_page(
    figures: Mapping,
    tables: Mapping[str, Table],
    plots: Mapping[str, Path],
    path: Path,
    template: str,
) -> None:
    """Write a page of tables and plots.

    Args:
        figures: What the tables were made of.
        tables: By a short name.
        plots: File of each plot.
        path: File to write.
        template: Name of the page's template.
    """
    html = _template(template).render(
        figures=figures,
        version=__version__,
        tables=tables,
        plots=_embedded_plots(plots),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("adabm_basicsr.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = json.dumps
    return environment.get_template(name)


def _embedded_plots(plots: Mapping[str, Path]) -> dict[str, tuple[str, str]]:
    """Caption and data of each plot."""
    embedded = {}
    for name, file in plots.items():
        embedded[name] = (PLOTS[name], _data_uri(file.read_bytes(), "png"))
    return embedded


def _cards(figures: Mapping) -> list[tuple[str, Cell | None, Cell]]:
    """The figures to see first: title, before and after. They are those of the first set."""
    if not figures["sets"]:
        return []
    name = next(iter(figures["sets"]))
    own = own_variant(figures)
    cards = []
    for metric in CARDS:
        after = cell(figures, ("sets", name, "versions", own, metric), metric)
        if after.value is None:
            continue
        before = None
        if own != FULL:
            in_full = cell(figures, ("sets", name, "versions", FULL, metric), metric)
            if in_full.value is not None:
                before = in_full
        cards.append((title(metric), before, after))
    return cards


def _crop_rows(places: Sequence[Mapping], crops: Sequence[Crop]) -> list[dict[str, Any]]:
    """Crops with a label and embedded pixels."""
    several_sets = len({place["set"] for place in places}) > 1
    rows = []
    for place, crop in zip(places, crops, strict=True):
        label = place["image"]
        if several_sets:
            label = f"{place['set']}, {label}"
        if place["self_psnr"] is None:
            label += ", no error"
        else:
            label += f", {place['self_psnr']:.1f} dB"
        row = dict(place)
        row["label"] = label
        row["pixels"] = {column: _embed(pixels) for column, pixels in crop.items()}
        rows.append(row)
    return rows


def _frames(figures: Mapping, store: PictureStore) -> list[tuple[str, str]]:
    """Caption and embedded pixels of the frames that are shown, those of all sets."""
    shown = []
    for name, facts in figures["sets"].items():
        for frame in facts["frames"]:
            pixels = store.read(name, own_variant(figures), frame["picture"])
            if pixels is not None:
                caption = f"{frame['clip']}, frame {frame['number']}: {frame['self_psnr']:.1f} dB"
                shown.append((caption, _embed(pixels, ".jpg")))
    return shown


def _class_map(figures: Mapping, store: PictureStore) -> dict[str, Any] | None:
    """A large image, the class of each of its tiles as a picture over it, and the colours.

    None where no image has such a map, or its picture isn't kept.
    """
    name = mapped_set(figures)
    if name is None:
        return None
    bit_map = figures["sets"][name]["bit_map"]
    low = store.read(name, LOW, bit_map["image"])
    if low is None:
        return None
    picture = store.read(name, own_variant(figures), bit_map["image"])
    if picture is None:
        picture = low
    classes = np.array(bit_map["classes"])
    rows, columns = classes.shape
    height, width = low.shape[:2]
    palette = np.array(CLASS_COLOURS, np.uint8)
    facts = bit_map["class_facts"]
    return {
        "image": bit_map["image"],
        "tile": bit_map["tile"],
        "picture": _embed(picture, ".jpg"),
        "overlay": _embed(palette[classes]),
        # Tiles at the border are cut off: the overlay reaches beyond the picture.
        "width": 100 * columns * bit_map["tile"] / width,
        "height": 100 * rows * bit_map["tile"] / height,
        "colours": [_css_colour(*colour) for colour in CLASS_COLOURS],
        "bits_differ": len({fact["bits"] for fact in facts}) > 1,
        "ranges_differ": facts[0]["range_factor"] is not None,
    }


def _css_colour(red: int, green: int, blue: int, opacity: int) -> str:
    return f"rgb({red} {green} {blue} / {opacity / 255:.0%})"


def _embed(pixels: np.ndarray, kind: str = ".png") -> str:
    """Pixels, RGB or RGBA, as a picture within the page."""
    options = []
    media_type = "png"
    if kind == ".jpg":
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        media_type = "jpeg"
    order = [2, 1, 0, 3][: pixels.shape[2]]
    done, content = cv2.imencode(kind, np.ascontiguousarray(pixels[..., order]), options)
    assert done, kind
    return _data_uri(content.tobytes(), media_type)


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _distribution(layer: Mapping) -> dict[str, str] | None:
    """A layer's distribution as bars, and its clipping range, in a drawing 100 wide and 24 high."""
    ends = [layer[key] for key in ("lowest", "highest", "lower", "upper")]
    if any(end is None for end in ends):
        return None
    left = min(ends)
    width = max(max(ends) - left, 1e-12)
    lowest, highest, lower, upper = (100 * (end - left) / width for end in ends)
    # Roots, so that the rare values, which clipping is about, are seen.
    roots = np.sqrt(layer["counts"])
    heights = BAR_HEIGHT * roots / max(roots.max(), 1e-12)
    step = (highest - lowest) / len(roots)
    bars = []
    for index, height in enumerate(heights):
        if height:
            start = lowest + index * step
            bars.append(f"M{start:.1f} 24v-{height:.1f}h{step:.2f}V24z")
    return {"bars": "".join(bars), "lower": f"{lower:.1f}", "upper": f"{upper:.1f}"}
