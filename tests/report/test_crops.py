"""Crops of a report: where quantization hurts most and least."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from adabm_basicsr.report.crops import CROP, crop_errors, find_crops
from adabm_basicsr.report.figures import ADAPTIVE, FULL
from adabm_basicsr.runs.pictures import PictureStore

RUN = Path("results/tiny_test")


def test_worst_come_first(at_run):
    crops = json.loads((RUN / "report/report.json").read_text())["crops"]
    assert [crop["kind"] for crop in crops] == ["worst", "worst", "best", "best"]
    errors = [crop["mse"] for crop in crops]
    assert errors[0] > errors[1]
    assert errors[2] > errors[3]
    assert errors[0] > errors[3]


def test_picture_of_all_crops(at_run):
    picture = cv2.imread(str(RUN / "report/crops.png"))
    assert picture.shape[1] > 1000
    assert picture.std() > 10


def test_errors_are_means_over_each_crop():
    random = np.random.default_rng(0)
    full, mine = random.integers(0, 256, (2, 120, 130, 3)).astype(np.uint8)
    errors, size = crop_errors(full, mine)
    assert size == CROP
    assert errors.shape == (9, 19)
    difference = full[3 : 3 + size, 5 : 5 + size].astype(float) - mine[3 : 3 + size, 5 : 5 + size]
    assert errors[3, 5] == pytest.approx(np.square(difference).mean(), rel=1e-4)


def covers(crop, rows, columns):
    """Whether a crop holds a rectangle."""
    top, left = crop["top"], crop["left"]
    holds_rows = top <= rows[0] and rows[1] <= top + crop["size"]
    return holds_rows and left <= columns[0] and columns[1] <= left + crop["size"]


def test_crops_of_an_image_lie_where_it_differs_and_apart(tmp_path):
    store = PictureStore(tmp_path)
    full = np.full((300, 400, 3), 100, np.uint8)
    mine = full.copy()
    mine[20:60, 30:70] = 160
    mine[200:240, 300:340] = 130
    store.keep("Val", FULL, "a", full)
    store.keep("Val", ADAPTIVE, "a", mine)
    worst, second, best = find_crops(store, ["Val"], ADAPTIVE)
    assert covers(worst, rows=(20, 60), columns=(30, 70))
    assert covers(second, rows=(200, 240), columns=(300, 340))
    assert (worst["kind"], second["kind"], best["kind"]) == ("worst", "worst", "best")
    assert best["self_psnr"] is None
    assert find_crops(store, ["Val"], FULL) == []
