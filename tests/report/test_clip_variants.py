"""The report of a run on clips: variants by frame, and the frames that are hurt most."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.data.data_util import generate_frame_indices
from basicsr.utils import img2tensor, tensor2img
from clip_files import moving, write_frames
from clip_networks import CarriesOn, MiddleFrame
from page_figures import PageFigures

from adabm_basicsr import load_network
from adabm_basicsr.commands.main import main
from adabm_basicsr.data.prepare_clips import prepare_clips
from adabm_basicsr.report.clip_variants import SHOWN, HurtFrame, WorstFrames
from adabm_basicsr.report.figures import VARIANTS

OF_CLIPS = "VideoRecurrentTestDataset"
OF_WINDOWS = "VideoTestDataset"
NETWORKS = {OF_CLIPS: CarriesOn, OF_WINDOWS: MiddleFrame}
FRAMES = {"city": 7, "walk": 5}
WINDOW = 5
RUN = Path("results/tiny_test")


@pytest.fixture(params=[OF_CLIPS, pytest.param(OF_WINDOWS, marks=pytest.mark.slow)])
def run(request, workspace):
    """A run that was trained and tested on clips; the type of its set."""
    for clip, frames in FRAMES.items():
        write_frames(workspace.root / "hr" / clip, moving(frames, 64, 96))
    prepare_clips([workspace.root / "hr"], 4, Path("film/lq"), Path("film/gt"))
    network = NETWORKS[request.param]
    torch.manual_seed(0)
    torch.save({"params": network().state_dict()}, "tiny.pth")
    quantized = {**workspace.network_options(), "network": {"type": network.__name__}}
    workspace.train(
        scale=4,
        network_g=quantized,
        train__total_iter=2,
        datasets__train__type="ClipCalibrationDataset",
        datasets__train__dataroot_lq="film/lq",
        datasets__train__lq_size=16,
        datasets__train__num_frame=WINDOW,
    )
    film = {
        "name": "Film",
        "type": request.param,
        "dataroot_gt": "film/gt",
        "dataroot_lq": "film/lq",
    }
    if request.param == OF_WINDOWS:
        film["num_frame"] = WINDOW
    workspace.test(scale=4, network_g=quantized, datasets={"test": film})
    return request.param


def test_every_variant_is_run_on_clips(run, capsys):
    main(["report", str(RUN)])
    figures = json.loads((RUN / "report" / "report.json").read_text())
    film = figures["sets"]["Film"]
    assert set(film["by_frame"]) == set(film["versions"]) == set(VARIANTS)
    of_run = json.loads((RUN / "run.json").read_text())["sets"]["Film"]
    adaptive = film["by_frame"]["adaptive"]
    assert len(adaptive["psnr"]) == len(adaptive["fab"]) == max(FRAMES.values())
    assert adaptive["psnr"] == pytest.approx(of_run["by_frame"]["psnr"])
    assert film["versions"]["adaptive"]["psnr"] == pytest.approx(of_run["metrics"]["psnr"])

    # Frames of a clip that lie close together look alike.
    assert [frame["clip"] for frame in film["frames"]].count("city") <= 2
    for frame in film["frames"]:
        made = cv2.imread(str(RUN / "pictures/Film/full_precision" / f"{frame['picture']}.png"))
        assert np.array_equal(made, in_full_precision(run, frame["clip"])[frame["number"]])
        for variant in ("ground_truth", "low_resolution", "static", "adaptive"):
            assert (RUN / "pictures/Film" / variant / f"{frame['picture']}.png").is_file()

    page = (RUN / "report" / "report.html").read_text()
    worst = film["frames"][0]
    caption = f"{worst['clip']}, frame {worst['number']}: {worst['self_psnr']:.1f} dB"
    assert caption in page
    assert all(address.startswith("data:") for address in PageFigures(page).loaded)
    assert (RUN / "report" / "frames.png").is_file()

    # Nothing is run again.
    capsys.readouterr()
    main(["report", str(RUN)])
    assert "Film, static" not in capsys.readouterr().out

    # Frames that were hurt most before, by another checkpoint say, are forgotten.
    earlier = RUN / "pictures/Film/adaptive/walk_00000099.png"
    earlier.touch()
    main(["report", str(RUN)])
    assert not earlier.exists()

    # One without validation is shown on its calibration clips.
    main(["report", "experiments/tiny", "--json"])
    figures = json.loads(capsys.readouterr().out)
    clips = figures["sets"]["Calibration"]
    assert clips["versions"]["adaptive"]["self_psnr"] > 20
    assert {frame["clip"] for frame in clips["frames"]} == set(FRAMES)
    assert figures["crops"]


def in_full_precision(kind, clip):
    """All frames of a clip by the network before quantization, as OpenCV has them."""
    frames = []
    for path in sorted(Path("film/lq", clip).iterdir()):
        frames.append(img2tensor(cv2.imread(str(path)).astype(np.float32) / 255))
    net = load_network("experiments/tiny/models/net_g_latest.pth")
    clip = torch.stack(frames)[None]
    inputs = [clip]
    if kind == OF_WINDOWS:
        inputs = []
        for number in range(len(frames)):
            window = generate_frame_indices(number, len(frames), WINDOW, "reflection")
            inputs.append(clip[:, window])
    with torch.no_grad(), net.full_precision():
        made = torch.cat([net(part).flatten(0, -4) for part in inputs])
    return [tensor2img(frame) for frame in made]


def test_of_close_frames_the_worst_is_shown():
    worst = WorstFrames()
    for number, self_psnr in enumerate([40, 39, 38, 37, 36, 30, 37, 38, 39, 40, 41, 35]):
        worst.offer(HurtFrame("city", number, self_psnr, np.zeros((1, 1, 3))))
    found = [(frame["number"], frame["self_psnr"]) for frame in worst.facts()]
    assert found == [(5, 30), (11, 35)]
    for number in range(SHOWN):
        worst.offer(HurtFrame(f"walk {number}", 0, 32 + number, np.zeros((1, 1, 3))))
    assert len(worst.found) == SHOWN
    assert [frame.clip for frame in worst.found[:2]] == ["city", "walk 0"]
