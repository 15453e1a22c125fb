"""The command that makes low-resolution images."""

import cv2
import pytest
from clip_files import moving, write_video
from conftest import write_images

from adabm_basicsr.commands.main import main


def flags(folder, *others):
    return ["--hr", str(folder / "hr"), "--out", str(folder / "lr"), *others]


def test_command_writes_a_folder(tmp_path, capsys):
    write_images(tmp_path / "hr", [(41, 50), (32, 32)])
    main(["prepare", "--scale", "4", *flags(tmp_path, "--mod", str(tmp_path / "mod"))])
    assert cv2.imread(str(tmp_path / "mod" / "img_000.png")).shape == (40, 48, 3)
    assert cv2.imread(str(tmp_path / "lr" / "img_000.png")).shape == (10, 12, 3)
    assert "2 images of scale 1/4" in capsys.readouterr().out


def test_a_limit_on_pixels(tmp_path, capsys):
    write_images(tmp_path / "hr", [(32, 32)])
    with pytest.raises(SystemExit):
        main(["prepare", "--scale", "2", *flags(tmp_path, "--max-pixels", "1000")])
    assert "more than max_pixels 1000 allows" in capsys.readouterr().err


def test_clips_of_a_video_file(tmp_path, capsys):
    write_video(tmp_path / "film.mp4", moving(5, 96, 128))
    clips = ["--clips", str(tmp_path / "film.mp4"), "--scale", "4", "--frames", "1-3"]
    targets = ["--out", str(tmp_path / "lr"), "--mod", str(tmp_path / "gt")]
    main(["prepare", *clips, *targets, "--shrink", "2"])
    assert cv2.imread(str(tmp_path / "gt" / "film" / "00000002.png")).shape == (48, 64, 3)
    assert cv2.imread(str(tmp_path / "lr" / "film" / "00000002.png")).shape == (12, 16, 3)
    printed = capsys.readouterr().out
    assert f"1 clip, 3 frames of scale 1/4 in {tmp_path / 'lr'}\n" in printed
    assert f"1 clip, 3 frames in {tmp_path / 'gt'}\n" in printed


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--hr", "a", "--out", "b", "--frames", "0-3"], "--frames: only with --clips"),
        (["--hr", "a", "--out", "b", "--shrink", "2"], "--shrink: only with --clips"),
        (["--hr", "a"], "--out is missing"),
        (["--clips", "a", "--out", "b", "--shrink", "0"], "--shrink: 0 is not a positive whole"),
        (["--out", "b"], "one of the arguments --hr --clips is required"),
    ],
)
def test_flags_that_do_not_go_together(capsys, argv, text):
    with pytest.raises(SystemExit):
        main(["prepare", "--scale", "4", *argv])
    assert text in capsys.readouterr().err
