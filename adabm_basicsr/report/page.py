"""The HTML of a report: one file with its pictures, style and script in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from adabm_basicsr.files import atomic_path
from adabm_basicsr.report.crops import column_title, crop_columns
from adabm_basicsr.report.figures import FULL, own_version
from adabm_basicsr.report.formats import title
from adabm_basicsr.report.plots import map_colours
from adabm_basicsr.report.tables import Cell, Table, all_tables, cell
from adabm_basicsr.runs.pictures import LOW, PictureStore
from adabm_basicsr.version import __version__

JPEG_QUALITY = 92  # of the large picture, which shows bits rather than details
PLOTS = {
    "layers": "Bits along the network",
    "complexity": "Complexity of images and bits used",
    "histogram": "Bits used over the validation sets",
    "tradeoff": "Quality against cost of the runs in this folder",
}


def write_page(
    figures: Mapping,
    crops: Sequence[Mapping[str, np.ndarray]],
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
    tables = all_tables(figures)
    several = len({place["set"] for place in figures["crops"]}) > 1
    rows = [_crop_row(place, crop, several) for place, crop in zip(figures["crops"], crops)]
    html = _template("report.html").render(
        figures=figures,
        version=__version__,
        tables=tables,
        cards=_cards(figures),
        crops=rows,
        columns=[(column, column_title(column)) for column in crop_columns(crops)],
        bit_map=_bit_map(figures, store),
        plots={
            name: (PLOTS[name], _data_uri(file.read_bytes(), "png")) for name, file in plots.items()
        },
        distributions=[_distribution(layer) for layer in figures["layers"]],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def write_comparison(
    figures: Mapping, tables: Mapping[str, Table], plots: Mapping, path: Path
) -> None:
    """Write the page that puts runs side by side; arguments as in `write_page`."""
    plots = {
        name: (PLOTS[name], _data_uri(file.read_bytes(), "png")) for name, file in plots.items()
    }
    html = _template("compare.html").render(
        figures=figures, version=__version__, tables=tables, plots=plots
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _template(name: str):
    loader = PackageLoader("adabm_basicsr.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.lstrip_blocks = True
    environment.filters["value"] = json.dumps
    return environment.get_template(name)


def _cards(figures: Mapping) -> list[tuple[str, Cell | None, Cell]]:
    """The figures to see first, before and after: those of the first set."""
    if not figures["sets"]:
        return []
    name, facts = next(iter(figures["sets"].items()))
    own = own_version(figures)
    cards = []
    for metric in ("psnr", "self_psnr", "fab", "bitops", "weight_bytes"):
        before, after = (("sets", name, "versions", version, metric) for version in (FULL, own))
        if facts["versions"][own].get(metric) is not None:
            cards.append(
                (title(metric), cell(figures, before, metric), cell(figures, after, metric))
            )
    quantized = own != FULL
    return [
        (label, before if quantized and before.value is not None else None, after)
        for label, before, after in cards
    ]


def _crop_row(place: Mapping, crop: Mapping[str, np.ndarray], name_set: bool) -> dict:
    psnr = "no error" if place["self_psnr"] is None else f"{place['self_psnr']:.1f} dB"
    names = [place["set"], place["image"]] if name_set else [place["image"]]
    return {
        **place,
        "label": ", ".join([*names, psnr]),
        "pixels": {c: _embed(p) for c, p in crop.items()},
    }


def _bit_map(figures: Mapping, store: PictureStore) -> dict | None:
    """The largest image that has a bit map, with the map as a picture and what its colours mean."""
    found = [
        (len(f["bit_map"]["bits"]) * len(f["bit_map"]["bits"][0]), n)
        for n, f in figures["sets"].items()
        if f["bit_map"]
    ]
    if not found:
        return None
    name = max(found)[1]
    told = figures["sets"][name]["bit_map"]
    low = store.read(name, LOW, told["image"])
    picture = store.read(name, own_version(figures), told["image"])
    if low is None:
        return None
    values = np.unique(np.array(told["bits"]).round(4))
    colours = map_colours([values.tolist()])[0]
    return {
        **told,
        "picture": _embed(picture if picture is not None else low, ".jpg"),
        "overlay": _embed(map_colours(told["bits"])),
        "width": 100 * len(told["bits"][0]) * told["tile"] / low.shape[1],
        "height": 100 * len(told["bits"]) * told["tile"] / low.shape[0],
        "legend": [
            (f"{value:.2f}", "rgb({}, {}, {})".format(*colour))
            for value, colour in zip(values, colours)
        ],
    }


def _embed(pixels: np.ndarray, kind: str = ".png") -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == ".jpg" else []
    done, content = cv2.imencode(kind, np.ascontiguousarray(pixels[..., ::-1]), options)
    assert done, kind
    return _data_uri(content.tobytes(), "jpeg" if kind == ".jpg" else "png")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _distribution(layer: Mapping) -> dict | None:
    """A layer's distribution as bars, and its clipping range, in a drawing 100 wide and 24 high."""
    ends = [layer[key] for key in ("lowest", "highest", "lower", "upper")]
    if any(end is None for end in ends):
        return None
    left, right = min(ends), max(ends)
    width = max(right - left, 1e-12)
    lowest, highest, lower, upper = (100 * (end - left) / width for end in ends)
    counts = np.sqrt(layer["counts"])  # so that the rare values, which clipping is about, are seen
    heights = 22 * counts / max(counts.max(), 1e-12)
    step = (highest - lowest) / len(counts)
    bars = "".join(
        f"M{lowest + i * step:.1f} 24v-{height:.1f}h{step:.2f}V24z"
        for i, height in enumerate(heights)
        if height
    )
    return {"bars": bars, "lower": f"{lower:.1f}", "upper": f"{upper:.1f}"}
