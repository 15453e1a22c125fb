"""The command that super-resolves files, with networks that take clips."""

import json

import clip_networks  # noqa: F401 - registers them
import cv2
import numpy as np
import pytest
import torch
from clip_files import FRAME, moving, write_clips, write_frames, write_video
from conftest import TINY_EDSR, photograph

from adabm_basicsr import calibrate, load_network, save_packed
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.commands.main import main
from adabm_basicsr.data.frames import FrameRange, read_clip
from adabm_basicsr.deployment import chunks

SHAPES = {
    "CarriesOn": (1, 5, 3, 16, 20),
    "MiddleFrame": (1, 5, 3, 16, 20),
    "Demanding": (1, 5, 3, 20, 24),
    "Stacked": (1, 5, 3, 16, 20),
    "EDSR": (1, 3, 16, 20),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a packed file of a network of clips, of windows and of images."""
    folder = tmp_path_factory.mktemp("models")
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        network = dict(TINY_EDSR) if name == "EDSR" else {"type": name}
        net = AdaBMNetwork(network=network, fully_quantized=True, recipe="static")
        save_packed(calibrate(net, [torch.rand(shape)]), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with three clips in ``in``."""
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "in", 2, 5)
    write_video(tmp_path / "in/film.mp4", moving(7, 48, 64))
    return tmp_path


def upscale(models, *argv, model="CarriesOn"):
    main(["upscale", "-m", str(models / f"{model}.safetensors"), "-o", "out", *argv])


def fails(models, capsys, *argv, model="CarriesOn"):
    """The one line that the command fails with."""
    with pytest.raises(SystemExit):
        upscale(models, *argv, model=model)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def written(folder):
    """What was made of each clip: its frames by name, RGB."""
    made = {}
    for clip in sorted((folder / "out").iterdir()):
        made[clip.name] = {path.name: cv2.imread(str(path))[..., ::-1] for path in clip.iterdir()}
    return made


def frames(count):
    return {FRAME.format(number) for number in range(count)}


def test_folders_of_frames_and_a_video_become_folders_of_frames(models, folder, capsys):
    upscale(models, "-i", "in", "--device", "cpu")
    made = written(folder)
    assert {name: set(clip) for name, clip in made.items()} == {
        "000": frames(5),
        "001": frames(5),
        "film": frames(7),
    }
    clip = np.stack([frame[..., ::-1] for frame in moving(5)])
    low = torch.from_numpy(clip).permute(0, 3, 1, 2)[None] / 255
    with torch.no_grad():
        expected = load_network(models / "CarriesOn.safetensors")(low)[0].permute(0, 2, 3, 1)
    found = np.stack([made["000"][name] for name in sorted(made["000"])])
    assert np.abs(found - expected.clamp(0, 1).numpy() * 255).max() < 0.51
    assert "clips upscaled: 3, 0.5 megapixels" in capsys.readouterr().out


def test_windows_in_chunks(models, folder):
    upscale(models, "-i", "in/000", "in/film.mp4", model="MiddleFrame")
    whole = written(folder)
    assert {name: set(clip) for name, clip in whole.items()} == {
        "000": frames(5),
        "film": frames(7),
    }
    upscale(models, "-i", "in/*", "--chunk", "1", "--overwrite", model="MiddleFrame")
    in_chunks = written(folder)
    for name, clip in whole.items():
        for number, frame in clip.items():
            assert np.array_equal(in_chunks[name][number], frame)


def test_of_a_network_of_one_length_middle_frames_are_taken(models, folder):
    upscale(models, "-i", "in/film.mp4", "--device", "cpu", model="Stacked")
    made = written(folder)["film"]
    assert set(made) == frames(7)
    clip = np.stack(list(read_clip(folder / "in/film.mp4", FrameRange(0, 4))))
    low = torch.from_numpy(clip).permute(0, 3, 1, 2)[None] / 255
    with torch.no_grad():
        expected = load_network(models / "Stacked.safetensors")(low)[0, 2].permute(1, 2, 0)
    assert np.abs(made[FRAME.format(2)] - expected.clamp(0, 1).numpy() * 255).max() < 0.51


def test_what_exists_is_left_alone(models, folder, capsys):
    upscale(models, "-i", "in/000")
    first = folder / "out/000" / FRAME.format(0)
    made = first.stat().st_mtime_ns
    capsys.readouterr()
    upscale(models, "-i", "in", "--json")
    figures = json.loads(capsys.readouterr().out)
    assert (figures["upscaled"], figures["existed"], figures["failed"]) == (2, 1, {})
    assert figures["pixels"] == 16 * (5 * 24 * 32 + 7 * 48 * 64)
    assert first.stat().st_mtime_ns == made
    upscale(models, "-i", "in", "--overwrite")
    assert first.stat().st_mtime_ns > made


def test_a_broken_clip_doesnt_stop_the_rest(models, folder, capsys):
    (folder / "in/000" / FRAME.format(2)).unlink()
    (folder / "in/broken.mp4").write_bytes(b"no video")
    write_frames(folder / "in/mixed", [photograph(24, 32), photograph(16, 32)])
    with pytest.raises(SystemExit):
        upscale(models, "-i", "in")
    printed = capsys.readouterr()
    assert "clips upscaled: 2," in printed.out
    assert "3 of 5 clips failed" in printed.err
    assert "00000003.png follows 00000001.png; number the frames without gaps" in printed.err
    assert "broken.mp4 is broken, or of a codec that OpenCV lacks" in printed.err
    assert "frames of a clip must be of one size" in printed.err


def test_a_mistake_in_a_networks_code_fails_its_clip_alone(models, folder, capsys, monkeypatch):
    run_chunk = chunks.run_chunk

    def run(network, chunk, window):
        if len(chunk.frames) == 5:
            raise IndexError("there is no such frame")
        return run_chunk(network, chunk, window)

    monkeypatch.setattr(chunks, "run_chunk", run)
    with pytest.raises(SystemExit):
        upscale(models, "-i", "in")
    printed = capsys.readouterr()
    assert "clips upscaled: 1," in printed.out
    assert "2 of 3 clips failed" in printed.err
    assert "in/000 cannot be upscaled: IndexError: there is no such frame" in printed.err


def test_frames_of_a_longer_clip_dont_stay(models, folder):
    """Nor is removed what no longer clip can have left."""
    upscale(models, "-i", "in/film.mp4")
    made = folder / "out/film"
    for name in ("00000009.png", "notes.txt", "5.png"):
        (made / name).write_text("kept")
    (folder / "in/film.mp4").unlink()
    write_frames(folder / "in/film", moving(5))
    upscale(models, "-i", "in/film")
    assert (made / FRAME.format(6)).is_file()
    upscale(models, "-i", "in/film", "--overwrite")
    assert {path.name for path in made.iterdir()} == {
        *frames(5),
        "00000009.png",
        "notes.txt",
        "5.png",
    }


def test_a_clip_shorter_than_the_window(models, folder, capsys):
    write_frames(folder / "short", moving(3))
    with pytest.raises(SystemExit):
        upscale(models, "-i", "short", model="MiddleFrame")
    assert "short: the clip has 3 frames, but the network takes windows of 5" in (
        capsys.readouterr().err
    )


def test_clips_that_are_too_small_or_too_short_for_the_network(models, folder, capsys):
    write_frames(folder / "small", moving(4, 12, 40))
    write_frames(folder / "short", moving(2))
    with pytest.raises(SystemExit):
        upscale(models, "-i", "in", "small", "short", model="Demanding")
    printed = capsys.readouterr()
    assert "clips upscaled: 3," in printed.out
    assert "small: Demanding takes frames of at least 20x20 pixels, but the clip" in printed.err
    assert "short: Demanding takes clips of at least 3 frames, but the clip has 2" in printed.err


def test_processes_share_the_clips(models, folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    upscale(models, "-i", "in")
    assert set(written(folder)) == {"001"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tile", "64"], "--tile: the network takes clips, which run in chunks of whole frames"),
        (["--tile-overlap", "8"], "--tile-overlap: the network takes clips"),
        (["--batch", "2"], "--batch: the network takes clips"),
        (["--ext", "jpg"], "--ext: the network takes clips"),
        (["--chunk", "0"], "--chunk: 0 is not a positive whole number"),
        (["--chunk-overlap", "0"], "--chunk-overlap: 0 is not a positive whole number"),
        (["-o", "in"], "--out: in lies in in, which is put in; name another folder"),
        (["-o", "in/000/up"], "--out: in/000/up lies in in, which is put in"),
        (["-o", "in/film.mp4"], "--out: in/film.mp4 is a file; frames of clips are written to a"),
        (["-i", "in/film.mp"], "--input: clip in/film.mp does not exist; did you mean 'in/film.mp"),
        (
            ["-i", "in/000/00000000.png"],
            "0000.png is an image, no clip; give the folder of its fra",
        ),
    ],
)
def test_mistakes_are_one_line(models, folder, capsys, argv, message):
    assert message in fails(models, capsys, "-i", "in", *argv)
    assert not (folder / "out").exists()


def test_frames_that_are_put_in_are_never_overwritten(models, folder, capsys):
    def contents():
        return {path: path.read_bytes() for path in sorted((folder / "in").rglob("*.*"))}

    before = contents()
    for given in ("in/000", "in/*"):
        error = fails(models, capsys, "-i", given, "-o", "in", "--overwrite")
        assert (
            "--out: in/000 would be overwritten, but is put in itself; name another folder" in error
        )
    assert contents() == before


def test_windows_overlap_by_themselves(models, folder, capsys):
    error = fails(models, capsys, "-i", "in", "--chunk-overlap", "4", model="MiddleFrame")
    assert "--chunk-overlap: the network takes windows of 5 frames, which overlap by thems" in error


def test_clips_for_a_network_of_images(models, folder, capsys):
    for argv, message in {
        ("-i", "in"): "--input: folder in holds no images",
        ("-i", "in/film.mp4"): "--input: in/film.mp4 is a video, and the network takes images",
        ("-i", "in/000", "--chunk", "4"): "--chunk: it is for clips, and the network takes images",
    }.items():
        assert message in fails(models, capsys, *argv, model="EDSR")
