"""The command that makes low-resolution images."""

import cv2
import pytest
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
