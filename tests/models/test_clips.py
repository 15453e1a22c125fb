"""Validation of networks that take clips."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import ARCH_REGISTRY
from clip_files import moving, write_frames
from clip_networks import CarriesOn, MiddleFrame, Stacked

from adabm_basicsr import environment
from adabm_basicsr.data.prepare_clips import prepare_clips
from adabm_basicsr.models import adabm_model

PSNR = {"type": "calculate_psnr", "crop_border": 0, "test_y_channel": False}


@pytest.fixture
def films(workspace):
    """A working directory with clips of two lengths, x4, and weights of both kinds of network."""
    for clip, frames in (("city", 4), ("walk", 3)):
        write_frames(workspace.root / "hr" / clip, moving(frames, 128, 144))
    prepare_clips([workspace.root / "hr"], 4, Path("film/lq"), Path("film/gt"))
    torch.manual_seed(0)
    for network in (CarriesOn(), MiddleFrame(), Stacked(7)):
        torch.save({"params": network.state_dict()}, f"{type(network).__name__}.pth")
    return workspace


def options(**changes):
    named = {
        "name": "Film",
        "type": "VideoRecurrentTestDataset",
        "dataroot_gt": "film/gt",
        "dataroot_lq": "film/lq",
    }
    return {
        "scale": 4,
        "datasets": {"test": {**named, **changes}},
        **network({"type": "CarriesOn"}),
        "val": {"save_img": True, "metrics": {"psnr": dict(PSNR)}},
    }


def network(described):
    return {"network_g": described, "path": {"pretrain_network_g": f"{described['type']}.pth"}}


def of_windows():
    return {
        **options(type="VideoTestDataset", num_frame=3),
        **network({"type": "MiddleFrame"}),
    }


def written(name, clip, frame):
    return cv2.imread(f"results/tiny_test/visualization/{name}/{clip}/{frame:08d}_tiny_test.png")


def psnr_of(name, clip, frame):
    truth = cv2.imread(f"film/gt/{clip}/{frame:08d}.png")
    return calculate_metric({"img": written(name, clip, frame), "img2": truth}, dict(PSNR))


def logged():
    (log,) = Path("results/tiny_test").glob("test_*.log")
    return log.read_text()


def check_by_frame(name):
    """What is logged is what the pictures that were written have, as BasicSR averages it."""
    found = {(c, f): psnr_of(name, c, f) for c, n in (("city", 4), ("walk", 3)) for f in range(n)}
    city, walk = (np.mean([v for (c, _), v in found.items() if c == k]) for k in ("city", "walk"))
    metrics = json.loads(Path("results/tiny_test/metrics.json").read_text())
    assert metrics[name]["psnr"] == pytest.approx((city + walk) / 2)
    by_clip = re.search(r"# psnr: city (\S+), walk (\S+)\n", logged())
    assert [float(value) for value in by_clip.groups()] == pytest.approx([city, walk], abs=1e-4)
    means = [np.mean([v for (_, f), v in found.items() if f == frame]) for frame in range(4)]
    by_frame = re.search(r"# psnr by frame: (.*)\n", logged()).group(1)
    assert [float(value) for value in by_frame.split()] == pytest.approx(means, abs=1e-4)


def test_whole_clips(films, capsys):
    films.test(**options())
    check_by_frame("Film")
    assert "Validation Film: 2 clips, " in capsys.readouterr().err


def test_windows(films, capsys):
    films.test(**of_windows())
    check_by_frame("Film")
    assert "Validation Film: 7 frames, " in capsys.readouterr().err


def test_a_recurrent_network_on_windows_is_judged_by_their_middle_frames(films):
    films.test(**{**of_windows(), **network({"type": "CarriesOn"})})
    assert written("Film", "walk", 2).shape == (128, 144, 3)


@pytest.mark.parametrize("kind", ["CarriesOn", "Stacked"])
def test_vimeo(films, kind):
    """By networks of any length, and of that alone."""
    described = {"type": kind, "num_frame": 7} if kind == "Stacked" else {"type": kind}
    for name, size in (("gt", (128, 144)), ("lq", (32, 36))):
        write_frames(films.root / "vimeo" / name / "00001" / "0266", moving(8, *size), "im{}.png")
    Path("meta.txt").write_text("00001/0266 7 (128,144,3)\n")
    roots = {"dataroot_gt": "vimeo/gt", "dataroot_lq": "vimeo/lq", "meta_info_file": "meta.txt"}
    named = {"name": "Vimeo90K", "type": "VideoTestVimeo90KDataset", "num_frame": 7}
    films.test(**{**options(**named, **roots), **network(described)})
    folder = Path("results/tiny_test/visualization/Vimeo90K")
    assert (folder / "00001_0266" / "00001_0266_tiny_test.png").is_file()
    assert "by frame: " not in logged()


@pytest.mark.parametrize("model", ["VideoRecurrentModel", "VideoBaseModel"])
def test_basicsrs_own_models_validate_on_a_cpu(films, model):
    """Of several sets, one after another."""
    opt = options() if model == "VideoRecurrentModel" else of_windows()
    other = {**opt["datasets"]["test"], "name": "Other", "meta_info_file": "meta.txt"}
    Path("meta.txt").write_text("walk 3 (128,144,3)\n")
    opt["datasets"]["test_2"] = other
    opt["val"]["save_img"] = False
    films.test(model_type=model, **opt)
    figures = re.findall(r"Validation (\w+)\n.*# psnr: (\S+)", logged())
    assert [name for name, _ in figures] == ["Film", "Other"]
    assert all(float(value) > 5 for _, value in figures)


@pytest.fixture
def fails(films, capsys):
    """Run a test and return the line that it fails with."""

    def run(opt):
        with pytest.raises(SystemExit):
            films.test(**opt)
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


def test_whole_clips_for_a_network_of_windows(fails):
    error = fails({**options(), **network({"type": "MiddleFrame"})})
    assert "gives whole clips, but the network makes one frame of a window; take" in error


def test_tiles_of_clips(fails):
    opt = options()
    opt["val"]["tile"] = 64
    assert "val: tile: clips are validated whole; leave tile out" in fails(opt)


def test_clips_for_a_network_of_images(films, fails):
    changes = {
        "scale": 2,
        "network_g": films.network_options()["network"],
        "path": {"pretrain_network_g": "tiny.pth"},
    }
    prepare_clips([films.root / "hr"], 2, Path("half/lq"), Path("half/gt"))
    opt = options(dataroot_lq="half/lq", dataroot_gt="half/gt")
    error = "EDSR cannot be run on a clip of 3 channels at any size tried"
    assert error in fails({**opt, **changes})


class InEights(MiddleFrame):
    """Takes frames whose sides are multiples of 8."""

    def forward(self, window):
        if window.shape[-1] % 8:
            raise ValueError("sides are no multiples of 8")
        return super().forward(window)


def test_a_network_in_full_precision_takes_frames_of_any_size(films, monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "InEights", InEights)
    torch.save({"params": InEights().state_dict()}, "InEights.pth")
    films.test(**{**of_windows(), **network({"type": "InEights"})})
    assert written("Film", "walk", 2).shape == (128, 144, 3)


def test_a_clip_that_is_too_large_is_rejected_before_it_is_run(films, fails, monkeypatch):
    meminfo = films.root / "meminfo"
    meminfo.write_text("MemAvailable: 9 kB\n")
    monkeypatch.setattr(environment, "MEMORY_INFO", meminfo)
    monkeypatch.setattr(environment, "OWN_STATUS", meminfo)
    monkeypatch.setattr(adabm_model, "EASY_PIXELS", 1)
    error = fails(options())
    assert "datasets: dataroot_lq: the network takes about 0.0 GB for clip city of 4 " in error
    assert "frames of 36x32 pixels, and there are 0.0 GB; validate on shorter clips" in error


@pytest.mark.slow
def test_a_video_network_goes_the_whole_way(films):
    """Calibrated and fine-tuned on clips by option files, then validated from its checkpoint."""
    edvr = {
        "type": "EDVR",
        "num_feat": 8,
        "num_frame": 3,
        "deformable_groups": 4,
        "num_extract_block": 1,
        "num_reconstruct_block": 1,
        "center_frame_idx": 1,
    }
    torch.save({"params": build_network(dict(edvr)).state_dict()}, "edvr.pth")
    quantized = {
        "type": "AdaBMNetwork",
        "network": edvr,
        "w_bits": 8,
        "a_bits": 8,
        "fully_quantized": True,
        "recipe": "fast",
    }
    clips = {
        "type": "ClipCalibrationDataset",
        "dataroot_lq": "film/lq",
        "lq_size": 32,
        "num_frame": 3,
        "dataset_enlarge_ratio": 2,
    }
    named = {"datasets__train__" + key: value for key, value in clips.items()}
    weights = {"path__pretrain_network_g": "edvr.pth"}
    films.train(scale=4, network_g=quantized, train__total_iter=2, **weights, **named)
    tested = {
        "network_g": quantized,
        "path": {"pretrain_network_g": "experiments/tiny/models/net_g_latest.pth"},
    }
    films.test(**{**of_windows(), **tested})
    check_by_frame("Film")
