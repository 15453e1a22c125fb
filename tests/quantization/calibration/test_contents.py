"""Calibration images without content are a warning."""

import cv2
import numpy as np
import pytest
import torch
from conftest import photograph

from adabm_basicsr import calibrate, quantize

WARNING = "calibration images hold next to nothing: the most complex of them has a complexity of"


def batch(*pictures):
    stacked = torch.tensor(np.stack(pictures))
    return stacked.permute(0, 3, 1, 2).float() / 255


def text():
    picture = np.full((32, 32, 3), 255, np.uint8)
    return cv2.putText(picture, "Hi", (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0))


def night():
    noise = np.random.default_rng(0).normal(3, 1, (32, 32, 3))
    return noise.clip(0, 255).astype(np.uint8)


EMPTY = {
    "black": batch(*[np.zeros((32, 32, 3), np.uint8)] * 2),
    "one colour each": batch(np.full((32, 32, 3), 90, np.uint8), np.full((32, 32, 3), 9, np.uint8)),
    "scaled twice": batch(photograph(32, 32)) / 255,
}
FULL = {
    "a photograph among black ones": batch(
        *[np.zeros((32, 32, 3), np.uint8)] * 7, photograph(32, 32)
    ),
    "text": batch(text()),
    "night": batch(night()),
}


@pytest.mark.parametrize("name", EMPTY)
def test_images_without_content_are_a_warning(name, tiny, caplog):
    calibrate(quantize(tiny, EMPTY[name][:1], recipe="static"), [EMPTY[name]])
    assert WARNING in caplog.text


@pytest.mark.parametrize("name", FULL)
def test_images_with_content_are_not(name, tiny, caplog):
    calibrate(quantize(tiny, FULL[name][:1], recipe="static"), [FULL[name]])
    assert WARNING not in caplog.text


def test_a_run_shows_the_warning(workspace, capsys):
    for path in (workspace.root / "lr").iterdir():
        cv2.imwrite(str(path), np.zeros((40, 48, 3), np.uint8))
    workspace.train(
        train__total_iter=0, network_g__recipe="fast", network_g__target={"self_psnr": 30}
    )
    assert WARNING in capsys.readouterr().err
