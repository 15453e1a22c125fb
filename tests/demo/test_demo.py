"""The demo, whole and in parts."""

import json

import cv2
import numpy as np
import pytest

from adabm_basicsr.commands.demo import main
from adabm_basicsr.demo.run import SET, option_file
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.report.figures import VARIANTS

METRICS = {"psnr", "ssim", "fab", "bitops", "weight_bytes", "bitops_share", "size_share"}


def test_option_files_are_found():
    names = [f"{kind}_{run}.yml" for run in VARIANTS for kind in ("train", "test")]
    assert [option_file(name).is_file() for name in names] == [False, True, True, True, True, True]


def test_a_folder_of_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(AdaBMError, match="holds files that are not an earlier demo's"):
        main(["--out", str(tmp_path)])
    assert (tmp_path / "thesis.txt").is_file()


@pytest.mark.slow
def test_whole_demo(tmp_path, capsys):
    main(["--out", str(tmp_path / "out")])
    figures = json.loads((tmp_path / "out/report/report.json").read_text())
    versions = figures["sets"][SET]["versions"]
    assert set(versions) == set(VARIANTS)
    full, static, adaptive = (versions[version] for version in VARIANTS)
    assert set(full) == METRICS
    assert set(static) == set(adaptive) == {*METRICS, "self_psnr"}
    assert full["psnr"] > adaptive["psnr"] > static["psnr"] + 0.1
    assert full["fab"] == 32
    assert static["fab"] == 4
    assert adaptive["fab"] < 4.5
    assert adaptive["size_share"] < 0.17
    assert adaptive["bitops_share"] < 0.05
    assert np.std(cv2.imread(str(tmp_path / "out/report/crops.png"))) > 20
    console = capsys.readouterr()
    assert "PSNR (dB)" in console.out
    assert any(line.startswith("Report: ") for line in console.err.splitlines())
