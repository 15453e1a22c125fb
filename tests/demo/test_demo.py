"""The demo, whole and in parts."""

import json

import cv2
import numpy as np
import pytest
from conftest import photograph

from adabm_basicsr.demo.picture import COLUMNS, CROP, compare_crops
from adabm_basicsr.demo.run import RUNS, main, make_table, option_file
from adabm_basicsr.errors import AdaBMError

METRICS = {"psnr": 28.5, "ssim": 0.8, "fab": 4.0, "bitops": 1e12, "weight_bytes": 1e6}


def test_picture_has_all_columns_at_the_place_of_largest_error(tmp_path):
    truth = photograph(200, 240)
    versions = {column: truth for column in COLUMNS}
    spoiled = truth.copy()
    spoiled[150:190, 200:230] = 0
    versions["static"] = spoiled
    compare_crops({"a": versions, "small": {c: v[:60, :60] for c, v in versions.items()}}, {}, tmp_path / "p.png")
    picture = cv2.imread(str(tmp_path / "p.png"))
    assert picture.shape[1] > 2 * CROP * len(COLUMNS) and picture.std() > 10


def test_table_compares_with_full_precision():
    table = make_table({"full_precision": METRICS, "static": {**METRICS, "bitops": 1e11, "weight_bytes": 2e5}})
    assert "100 G (10.0 %)" in table and "0.20 MB (20.0 %)" in table


def test_option_files_are_found():
    names = [f"{kind}_{run}.yml" for run in RUNS for kind in ("train", "test")]
    assert [option_file(name).is_file() for name in names] == [False, True, True, True, True, True]


def test_a_folder_of_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(AdaBMError, match="holds files that are not an earlier demo's"):
        main(["--out", str(tmp_path)])
    assert (tmp_path / "thesis.txt").is_file()


@pytest.mark.slow
def test_whole_demo(tmp_path, capsys):
    main(["--out", str(tmp_path / "out")])
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert list(summary) == list(RUNS)
    assert all(set(METRICS) == set(metrics) for metrics in summary.values())
    full, static, adaptive = summary.values()
    assert full["psnr"] > adaptive["psnr"] > static["psnr"] + 0.1
    assert full["fab"] == 32 and static["fab"] == 4 and adaptive["fab"] < 4.5
    assert adaptive["weight_bytes"] < 0.17 * full["weight_bytes"]
    assert adaptive["bitops"] < 0.05 * full["bitops"]
    assert np.std(cv2.imread(str(tmp_path / "out/comparison.png"))) > 20
    assert "PSNR (dB)" in capsys.readouterr().out
