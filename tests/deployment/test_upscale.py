"""The command that super-resolves files."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY_EDSR, photograph, photographs

from adabm_basicsr import (
    AdaBMError,
    calibrate,
    load_network,
    save_checkpoint,
    save_onnx,
    save_packed,
)
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.commands.main import main
from adabm_basicsr.deployment.upscale import Tiling, plan_outputs, upscale_pixels

MODELS = ["net.pth", "net.safetensors", "net.onnx"]
IMAGE = photograph(20, 26)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with one network in every format."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    lr = photographs(8, 24)
    net = calibrate(AdaBMNetwork(network=dict(TINY_EDSR), fully_quantized=True), [lr])
    save_checkpoint(net, folder / "net.pth")
    save_packed(net, folder / "net.safetensors")
    save_onnx(net, folder / "net.onnx")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    return tmp_path


def upscale(models, *argv, model="net.safetensors"):
    main(["upscale", "-m", str(models / model), "-o", "out", *argv])


def written(name):
    return cv2.imread(f"out/{name}", cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("model", MODELS)
def test_every_format_upscales_as_the_network_does(models, folder, model, capsys):
    cv2.imwrite("in/a.png", IMAGE)
    upscale(models, "-i", "in", "--device", "cpu", model=model)
    lr = torch.from_numpy(IMAGE[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = (
            load_network(models / "net.pth")(lr)[0].permute(1, 2, 0).flip(2).clamp(0, 1).numpy()
            * 255
        )
    assert written("a.png").shape == (40, 52, 3)
    assert np.abs(written("a.png") - expected).mean() < (0.51 if model != "net.onnx" else 1.0)
    assert "images upscaled: 1, 0.0 megapixels" in capsys.readouterr().out


def test_kinds_of_images_are_kept(models, folder):
    alpha = np.dstack([IMAGE, photograph(20, 26, 5)[..., 0]])
    deep = IMAGE.astype(np.uint16) * 257
    for name, image in {
        "a.jpg": IMAGE,
        "b.webp": alpha,
        "c.png": deep,
        "d.png": IMAGE[..., 0],
        "e.png": alpha,
    }.items():
        cv2.imwrite(f"in/{name}", image)
    cv2.imwrite("in/f.png", np.dstack([alpha.astype(np.uint16) * 257]))
    upscale(models, "-i", "in")
    kinds = {
        name: (written(name).shape[2:], written(name).dtype)
        for name in ("a.jpg", "b.webp", "c.png", "d.png")
    }
    assert kinds == {
        "a.jpg": ((3,), np.uint8),
        "b.webp": ((4,), np.uint8),
        "c.png": ((3,), np.uint16),
        "d.png": ((), np.uint8),
    }
    assert written("f.png").dtype == np.uint16
    assert len(np.unique(written("c.png"))) > 256
    enlarged = cv2.resize(alpha[..., 3], (52, 40), interpolation=cv2.INTER_CUBIC)
    assert np.abs(written("e.png")[..., 3].astype(int) - enlarged).max() <= 2
    np.testing.assert_allclose(written("c.png") / 257, written("e.png")[..., :3], atol=0.51)


def test_another_format_and_a_single_file(models, folder):
    cv2.imwrite("in/a.png", IMAGE)
    upscale(models, "-i", "in/a.png", "--ext", "webp")
    assert written("a.webp").shape == (40, 52, 3)
    main(["upscale", "-m", str(models / "net.pth"), "-i", "in/a.png", "-o", "deep/new.bmp"])
    assert cv2.imread("deep/new.bmp").shape == (40, 52, 3)


def test_tiles_give_almost_the_whole_image(models, folder):
    cv2.imwrite("in/a.png", photograph(60, 70))
    upscale(models, "-i", "in", "--tile", "64", "--tile-overlap", "20", "--batch", "2")
    tiled = written("a.png")
    upscale(models, "-i", "in", "--overwrite")
    assert 0 < np.abs(tiled.astype(int) - written("a.png")).mean() < 2


def test_what_exists_is_left_alone(models, folder, capsys):
    cv2.imwrite("in/a.png", IMAGE)
    upscale(models, "-i", "in/*.png")
    first = (folder / "out/a.png").stat().st_mtime_ns
    upscale(models, "-i", "in/*.png")
    assert (folder / "out/a.png").stat().st_mtime_ns == first
    assert "existed already: 1 (--overwrite makes them anew)" in capsys.readouterr().out
    upscale(models, "-i", "in/*.png", "--overwrite")
    assert (folder / "out/a.png").stat().st_mtime_ns > first


def test_a_broken_image_doesnt_stop_the_rest(models, folder, capsys):
    for name, content in {
        "b.png": b"",
        "c.jpg": b"no image",
        "d.png": cv2.imencode(".png", IMAGE)[1][:200],
    }.items():
        (folder / "in" / name).write_bytes(bytes(content))
    for name in ("a.png", "z.png"):
        cv2.imwrite(f"in/{name}", IMAGE)
    with pytest.raises(SystemExit) as stopped:
        upscale(models, "-i", "in")
    assert stopped.value.code == 2
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "z.png"]
    printed = capsys.readouterr()
    assert "3 of 5 images failed" in printed.err
    assert "in/b.png is broken" in printed.err
    assert "c.jpg" in printed.err
    assert "images upscaled: 2" in printed.out


def test_links_that_lead_nowhere_dont_stop_the_rest(models, folder, capsys):
    cv2.imwrite("in/z.png", IMAGE)
    inside = folder / "in"
    (inside / "a.png").symlink_to("b.png")
    (inside / "b.png").symlink_to("a.png")
    (inside / "gone.png").symlink_to("nothing.png")
    (inside / "loop").symlink_to(".")
    expected = {
        "a.png": "is a link that leads back to itself",
        "b.png": "is a link that leads back to itself",
        "gone.png": "is a link to nothing.png, which does not exist",
    }
    names = [f"in/{name}" for name in (*expected, "z.png")]
    for given in (["in"], ["in/*"], names):
        with pytest.raises(SystemExit):
            upscale(models, "-i", *given, "--overwrite")
        errors = capsys.readouterr().err
        assert "3 of 4 images failed" in errors
        for name, reason in expected.items():
            assert f"image in/{name} {reason}" in errors
        assert [path.name for path in (folder / "out").iterdir()] == ["z.png"]
    assert len(plan_outputs(["in/**/z.png"], folder / "out")) == 1
    (folder / "gone.safetensors").symlink_to("nothing")
    with pytest.raises(SystemExit):
        upscale(folder, "-i", "in/z.png", model="gone.safetensors")
    assert "gone.safetensors is a link to nothing, which does not exist" in capsys.readouterr().err


def test_a_file_that_is_named_twice_is_taken_once(models, folder, capsys):
    cv2.imwrite("in/a.png", IMAGE)
    (folder / "in/same.png").symlink_to("a.png")
    (folder / "way").symlink_to("in")
    upscale(models, "-i", "in/a.png", "in", "./in/../in/a.png", "way/*.png", str(folder / "in"))
    assert "images upscaled: 2," in capsys.readouterr().out
    assert np.array_equal(written("a.png"), written("same.png"))


def test_portable_maps_hold_what_they_are_for(models, folder, capsys):
    cv2.imwrite("in/a.png", IMAGE[..., 0])
    upscale(models, "-i", "in", "--ext", "pgm")
    assert written("a.pgm").shape == (40, 52)
    upscale(models, "-i", "in", "--ext", "ppm")
    assert np.array_equal(written("a.ppm"), np.dstack([written("a.pgm")] * 3))
    cv2.imwrite("in/a.png", IMAGE)
    with pytest.raises(SystemExit):
        upscale(models, "-i", "in", "--ext", "pgm", "--overwrite")
    reason = "in/a.png: .pgm holds grey images, this one has colours; take --ext ppm"
    assert reason in capsys.readouterr().err


def test_quiet_and_json(models, folder, capsys):
    cv2.imwrite("in/a.png", IMAGE)
    upscale(models, "-i", "in", "--quiet")
    assert capsys.readouterr() == ("", "")
    upscale(models, "-i", "in", "--json", "--overwrite")
    printed = json.loads(capsys.readouterr().out)
    assert (printed["upscaled"], printed["existed"], printed["failed"], printed["pixels"]) == (
        1,
        0,
        {},
        40 * 52,
    )


def test_processes_share_the_images(models, folder, monkeypatch):
    for name in "abc":
        cv2.imwrite(f"in/{name}.png", IMAGE)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    upscale(models, "-i", "in")
    assert [path.name for path in (folder / "out").iterdir()] == ["b.png"]


def test_a_device_is_no_matter_of_runtimes(models, folder, capsys):
    cv2.imwrite("in/a.png", IMAGE)
    with pytest.raises(SystemExit):
        upscale(models, "-i", "in", "--device", "cuda", model="net.onnx")
    assert "--device: cuda runs files of torch; " in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_mistakes_are_one_line(models, folder, capsys):
    for name in ("a.png", "a.jpg"):
        cv2.imwrite(f"in/{name}", IMAGE)
    (folder / "notes.txt").touch()
    for argv, message in {
        ("-i", "gone"): "gone is no file, no folder, and no pattern that matches an image",
        ("-i", "a" * 300): "a is no file, no folder, and no pattern that matches an image",
        ("-i", "in", "--ext", "gif"): "--ext: 'gif' is no image format; valid: bmp",
        ("-i", "in", "--ext", "png"): "would both become out/a.png",
        ("-i", "in", "-o", "one.png"): "one.png is one file, but 2 images are put in",
        (
            "-i",
            "in",
            "-o",
            "notes.txt",
        ): "--out: notes.txt is a file, and none of an image; name a folder",
        ("-i", "in", "-o", "in"): "in/a.jpg would be overwritten, but is put in itself",
        (
            "-i",
            "in/a.png",
            "-o",
            "in/a.png",
            "--overwrite",
        ): "in/a.png would be overwritten, but is put in itself",
        ("-i", "in/a.png", "-o", "in/../in/a.png"): "would be overwritten, but is put in itself",
        ("-i", "in", "--tile", "8"): "tile_overlap: 16 is more than a third of the tile, 8",
        ("-i", "in", "--batch", "0"): "--batch: 0 is not a positive whole number",
        ("-i", "in", "--threads", "-3"): "--threads: -3 is not a number of threads",
        ("-i", "in", "--device", "gpu7"): "--device: gpu7",
        ("-i", "in/a.png", "--runtime", "openvino"): "--runtime: openvino runs .onnx files; ",
    }.items():
        with pytest.raises(SystemExit):
            upscale(models, *argv)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(models, folder, capsys):
    cv2.imwrite("in/a.png", IMAGE)
    with pytest.raises(SystemExit):
        upscale(models, "-i", "in", "--device", "cuda")
    error = capsys.readouterr().err
    assert "--device: cuda: " in error
    assert error.count("\n") == 1


def test_a_grey_network_takes_grey_images(folder):
    class Grey(torch.nn.Module):
        in_channels = 1

        def forward(self, x):
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    grey = IMAGE[..., :1]
    result = upscale_pixels(Grey(), grey, Tiling(16, 4), np.dtype(np.uint8))
    assert np.array_equal(result, grey.repeat(2, 0).repeat(2, 1))
    with pytest.raises(AdaBMError, match="takes grey images, this one has colours"):
        upscale_pixels(Grey(), IMAGE, Tiling(16, 4), np.dtype(np.uint8))


def test_outputs_of_several_inputs(folder):
    (folder / "more").mkdir()
    cv2.imwrite("in/a.png", IMAGE)
    cv2.imwrite("more/b.png", IMAGE)
    jobs = plan_outputs(["in", "more/*"], folder / "out")
    assert [(str(source), target.name) for source, target in jobs] == [
        ("in/a.png", "a.png"),
        ("more/b.png", "b.png"),
    ]


PEAK = """
import json, resource, sys
from adabm_basicsr.commands.main import main
main(sys.argv[1:])
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


@pytest.mark.slow
def test_memory_doesnt_grow_with_the_image(models, folder):
    """Beyond what input and output take themselves: decoded, as float, the result and its file."""
    beyond = {}
    for height, width in ((270, 480), (1080, 1920)):
        cv2.imwrite("in/a.png", np.zeros((height, width, 3), np.uint8))
        argv = [
            "upscale",
            "-m",
            str(models / "net.pth"),
            "-i",
            "in",
            "-o",
            "out",
            "--overwrite",
            "--device",
            "cpu",
        ]
        run = subprocess.run(
            [sys.executable, "-c", PEAK, *argv], capture_output=True, text=True, check=True
        )
        pixels = height * width * 3
        beyond[height] = (
            json.loads(run.stdout.splitlines()[-1]) - pixels * (1 + 4 + 4) - 2 * 4 * pixels
        )
    assert beyond[1080] - beyond[270] < 60e6
