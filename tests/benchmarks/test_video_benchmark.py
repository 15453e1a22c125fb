"""The video benchmark's runs are valid options, and it measures what it says."""

import pytest
import torch
import video
from basicsr.archs import build_network
from clip_files import moving, write_video
from clip_networks import CarriesOn, MiddleFrame

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.data.frames import FrameRange


def quantized(network):
    clip = torch.rand(1, 3, 3, 16, 16)
    net = quantize(network, clip, w_bits=8, a_bits=8, recipe="static", fully_quantized=True)
    return calibrate(net, [clip])


@pytest.fixture
def films(tmp_path, monkeypatch):
    """A working directory with the clips that the benchmark makes of its films."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(video, "FILMS", tmp_path)
    monkeypatch.setattr(video, "CALIBRATION", (video.Film("film.mp4", FrameRange(0, 4), 2),))
    monkeypatch.setattr(video, "TEST", (video.Film("film.mp4", FrameRange(5, 14)),))
    write_video(tmp_path / "film.mp4", moving(15, 64, 96))
    video.make_clips()


def test_clips_are_made_once_and_cut_alike(films):
    video.make_clips()
    assert video.read_frames("clips/calibration/LR/film").shape == (5, 3, 8, 12)
    low, truth = video.read_pair("film", 7, 10)
    assert low.shape == (7, 3, 10, 10)
    assert truth.shape == (7, 3, 40, 40)
    of_truth = torch.nn.functional.avg_pool2d(truth, video.SCALE)
    assert (low - of_truth).abs().mean() < 0.02


@pytest.mark.parametrize("network", [CarriesOn, MiddleFrame])
def test_a_clip_is_measured_by_frame_and_length(network, films, monkeypatch):
    monkeypatch.setattr(video, "LENGTHS", (4, 8, 12))
    net = quantized(network())
    low, truth = video.read_pair("film", None, None)
    found = video.measure(net, low, truth)
    assert all(len(values) == 10 for values in found["by_frame"].values())
    losses = []
    for psnr, full in zip(
        found["by_frame"]["psnr"], found["by_frame"]["full_precision_psnr"], strict=True
    ):
        losses.append(full - psnr)
    assert sum(losses) / len(losses) == pytest.approx(found["loss"])
    if network is MiddleFrame:
        assert found["errors"] == {}
    else:
        assert list(found["errors"]) == [4, 8]
        assert video.growth(found["errors"]) != pytest.approx(1)


def test_table_and_plot_say_what_was_measured(tmp_path):
    clip = {
        "loss": 0.25,
        "fab": 3.9,
        "bitops": 2e12,
        "by_frame": {"psnr": [29.0, 28.5], "full_precision_psnr": [29.5, 29.0]},
        "errors": {10: 1e-4, 26: 1.5e-4, 50: 2e-4},
    }
    of_run = {"network": "EDVR", "bits": 4, "recipe": "best", "units": 4000}
    short = {**clip, "errors": {10: 1e-4}}
    runs = {"a": {**of_run, "clips": {video.SHOWN_CLIP: clip, "other": short}}}
    cells = [cell.strip() for cell in video.make_table(runs).splitlines()[-1].split("|")[1:-1]]
    assert cells[:7] == ["EDVR", "W4A4", "best", "0.250", "3.90", "2.000", "2.00"]
    assert cells[7:] == ["0.250", "3.90", "2.000", "", "4000"]
    video.plot(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", video.NETWORKS)
def test_runs_are_of_basicsrs_networks(kind):
    opt = video.options(kind, 4, "best", video.ROOT)
    network = opt["network_g"]["network"]
    assert build_network(dict(network))
    stretch = opt["datasets"]["train"]["num_frame"]
    assert stretch == network.get("num_frame", stretch)
