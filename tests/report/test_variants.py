"""The variants of a network that a report compares: run once, on the run's images."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr
from basicsr.utils import img2tensor, tensor2img

from adabm_basicsr import load_network
from adabm_basicsr.commands.main import main
from adabm_basicsr.report import variants
from adabm_basicsr.report.figures import VARIANTS

RUN = Path("results/tiny_test")


def test_variants_are_what_the_python_api_computes(at_run):
    figures = json.loads((RUN / "report/report.json").read_text())
    found = figures["sets"]["Val"]["versions"]
    assert set(found) == set(VARIANTS)
    net = load_network("experiments/tiny/models/net_g_latest.pth")
    values = []
    for name in ("img_000", "img_001"):
        low = img2tensor(cv2.imread(f"val/lq/{name}.png").astype(np.float32) / 255)[None]
        with torch.no_grad(), net.full_precision():
            full = tensor2img(net(low))
        kept = cv2.imread(str(RUN / f"pictures/Val/full_precision/{name}.png"))
        assert np.array_equal(full, kept)
        truth = cv2.imread(f"val/gt/{name}.png")
        values.append(calculate_psnr(full, truth, crop_border=2, test_y_channel=True))
    full, static, adaptive = (found[variant] for variant in VARIANTS)
    assert full["psnr"] == pytest.approx(np.mean(values))
    assert full["bitops_share"] == 1
    assert 0.03 < adaptive["bitops_share"] < 0.06
    assert static["fab"] == 4
    assert static["psnr"] != adaptive["psnr"]
    assert 20 < adaptive["self_psnr"] < 80


def test_pictures_are_made_once_and_again_after_a_change(at_run, monkeypatch):
    run = Path("results/again")
    shutil.copytree(RUN, run)
    ran = []
    original = variants._run

    def watched(store, of_run, variant, *others):
        ran.append(variant)
        return original(store, of_run, variant, *others)

    monkeypatch.setattr(variants, "_run", watched)
    main(["report", str(run), "--quiet"])
    assert not ran
    (run / "pictures/Val/static/img_001.png").unlink()
    main(["report", str(run), "--quiet"])
    shutil.rmtree(run)
    assert ran == ["static"]


def test_a_run_without_validation_is_shown_on_its_calibration_images(at_run, capsys):
    main(["report", "experiments/tiny", "--json"])
    figures = json.loads(capsys.readouterr().out)
    adaptive = figures["sets"]["Calibration"]["versions"]["adaptive"]
    assert adaptive["self_psnr"] > 20
    assert "psnr" not in adaptive
    assert figures["crops"]
    assert figures["seconds"].keys() == {"train"}


def without_images(record):
    record["options"]["datasets"]["test"]["dataroot_lq"] = "nowhere"


LOST = {
    "checkpoint": (
        lambda record: record.update(kind="train"),
        "lost holds no models/net_g_latest.pth: finish the run (train --auto_resume) first",
    ),
    "folder of the run": (
        lambda record: record.update(directory="gone"),
        "the folder gone that the run was started in is gone",
    ),
    "images": (without_images, "the images of Val in nowhere are gone"),
}


@pytest.mark.parametrize(("change", "message"), LOST.values(), ids=LOST)
def test_what_is_lost_is_named(change, message, at_run, capsys):
    run = Path("results/lost")
    shutil.copytree(RUN, run)
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        main(["report", str(run)])
    shutil.rmtree(run)
    assert message in capsys.readouterr().err
