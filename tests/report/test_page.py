"""The page of a report stands alone, and shows the image classes of a large image."""

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
from page_figures import PageFigures

from adabm_basicsr.report.figures import VARIANTS
from adabm_basicsr.runs.pictures import LOW, TRUTH

RUN = Path("results/tiny_test")


def read_page():
    return (RUN / "report/report.html").read_text()


def test_the_page_needs_nothing_else(at_run):
    page = PageFigures(read_page())
    assert page.loaded
    assert all(source.startswith("data:") for source in page.loaded)
    assert "http" not in read_page().replace("http://www.w3.org/2000/svg", "")


def test_crops_have_all_columns(at_run):
    for column in (*VARIANTS, LOW, TRUTH, "error"):
        assert f'data-column="{column}"' in read_page()


def test_the_map_has_the_colour_of_each_tiles_class(at_run):
    figures = json.loads((RUN / "report/report.json").read_text())
    classes = np.array(figures["sets"]["Val"]["bit_map"]["classes"])
    assert set(classes.flat) == {0, 1, 2}
    data = re.search(r'class="overlay" src="data:image/png;base64,([^"]+)"', read_page()).group(1)
    overlay = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)
    blue, green, red, opacity = (overlay[..., channel] for channel in range(4))
    swatches = re.findall(r'class="swatch" style="background: rgb\((.*?) / (.*?)%\)"', read_page())
    assert len(set(swatches)) == 3
    for image_class, (colour, percent) in enumerate(swatches):
        tiles = classes == image_class
        shown = {
            f"{r} {g} {b}" for r, g, b in zip(red[tiles], green[tiles], blue[tiles], strict=True)
        }
        assert shown == {colour}
        assert set(opacity[tiles] / 2.55) == {float(percent)}


def test_the_map_says_what_differs_between_classes(at_run):
    section = re.search(r'<section id="map">.*?</section>', read_page(), re.S).group()
    assert "Bits are the mean over layers that aren't fixed at 8 bits." in section
    # The recipe of the run, paper, shares ranges among classes.
    assert "multiplies its clipping range" not in section
