"""Validation sets of clips, checked as BasicSR is going to read them."""

import shutil

import cv2
import pytest
from clip_files import moving, write_clips, write_frames
from conftest import photograph

from adabm_basicsr import AdaBMError
from adabm_basicsr.data.prepare_clips import prepare_clips
from adabm_basicsr.options.datasets import check_datasets


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Options of a validation set of two clips of five frames."""
    monkeypatch.chdir(tmp_path)
    prepare_clips([write_clips(tmp_path / "hr", 2, 5)], 2, tmp_path / "lq", tmp_path / "gt")
    return {
        "name": "Film",
        "type": "VideoTestDataset",
        "dataroot_lq": "lq",
        "dataroot_gt": "gt",
        "num_frame": 3,
    }


@pytest.fixture
def vimeo(tmp_path, monkeypatch):
    """Options of one clip of Vimeo-90K's layout."""
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path / "gt" / "00001" / "0266", moving(8), "im{}.png")
    write_frames(tmp_path / "lq" / "00001" / "0266", moving(8, 12, 16), "im{}.png")
    (tmp_path / "meta.txt").write_text("00001/0266 7 (24,32,3)\n")
    return {
        "name": "Vimeo90K",
        "type": "VideoTestVimeo90KDataset",
        "dataroot_lq": "lq",
        "dataroot_gt": "gt",
        "meta_info_file": "meta.txt",
        "num_frame": 7,
    }


def check(dataset, scale=2):
    return check_datasets({"scale": scale, "datasets": {"val": dataset}})


def fails(text, dataset, scale=2):
    with pytest.raises(AdaBMError, match=text):
        check(dataset, scale)


def read(dataset):
    from basicsr.data import build_dataset

    return build_dataset({**dataset, "phase": "val", "scale": 2})


def test_basicsr_reads_windows_that_passed(clips):
    assert check(clips) == [(24, 32)] * 2
    windows = read(clips)
    assert windows.opt["name"] == "Film"
    assert len(windows) == 10
    assert windows[4]["lq"].shape == (3, 3, 12, 16)
    assert windows[4]["gt"].shape == (3, 24, 32)


def test_basicsr_reads_whole_clips_that_passed(clips, tmp_path):
    (tmp_path / "meta.txt").write_text("001 5 (24,32,3)\n")
    del clips["num_frame"]
    clips |= {"type": "VideoRecurrentTestDataset", "meta_info_file": "meta.txt"}
    assert check(clips) == [(24, 32)]
    assert read(clips)[0]["gt"].shape == (5, 3, 24, 32)


def test_basicsr_reads_what_passed_of_vimeo(vimeo):
    assert check(vimeo) == [(24, 32)]
    assert read(vimeo)[0]["lq"].shape == (7, 3, 12, 16)


def test_unreadable_frames_of_vimeo(vimeo, tmp_path):
    (tmp_path / "lq" / "00001" / "0266" / "im7.png").unlink()
    fails(r"image .*im7\.png cannot be read", vimeo)
    assert check({**vimeo, "num_frame": 5}) == [(24, 32)]
    del vimeo["meta_info_file"]
    fails("datasets: val: meta_info_file is missing: the list of its clips", vimeo)


def shorten(folder):
    for path in sorted(folder.iterdir())[2:]:
        path.unlink()


def rename(root):
    for path in sorted((root / "lq" / "001").iterdir()):
        path.rename(path.with_name(f"{int(path.stem) + 7}.png"))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (
            lambda root: (root / "gt" / "001" / "00000004.png").unlink(),
            "clip 001 has 5 frames in dataroot_lq, 4 in dataroot_gt",
        ),
        (
            lambda root: [shorten(root / name / "001") for name in ("lq", "gt")],
            "num_frame: 3, but clip 001 has 2 frames",
        ),
        (lambda root: (root / "lq" / "001" / "00000001.png").unlink(), "without gaps"),
        (rename, r"BasicSR would read 10\.png before 7\.png; give numbers the same digits"),
        (lambda root: (root / "lq" / "001" / "00000001.png").write_bytes(b"no"), "is broken"),
        (
            lambda root: cv2.imwrite(str(root / "lq/001/00000001.png"), photograph(9, 9)),
            r"clip lq/001: 00000001\.png has 9x9 pixels, but 00000000\.png 16x12",
        ),
        (lambda root: shutil.rmtree(root / "gt" / "001"), "clip 001 of dataroot_lq is not in"),
        (lambda root: shutil.rmtree(root / "lq" / "001"), "dataroot_gt gt has more clips than"),
        (lambda root: (root / "lq" / "001" / "x.txt").touch(), r"lq/001/x\.txt is not a frame"),
        (
            lambda root: (root / "gt" / "x.txt").touch(),
            r"dataroot_gt: gt/x\.txt is a file; folder ",
        ),
        (
            lambda root: [shutil.rmtree(root / "lq" / name) for name in ("000", "001")],
            "dataroot_lq: folder lq holds no clips",
        ),
    ],
)
def test_clips_that_basicsr_would_misread(clips, tmp_path, spoil, text):
    spoil(tmp_path)
    fails(text, clips)


def test_a_truth_of_another_size(clips):
    fails(
        r"00000000\.png of 32x24 pixels is not 4 \(scale\) times as large as .* of 16x12", clips, 4
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dataroot_gt": None}, "datasets: val: dataroot_gt is missing"),
        ({"num_frame": None}, "datasets: val: num_frame is missing"),
        ({"num_frame": 101}, "num_frame: 101 is out of range; valid: 1 to 99"),
        ({"dataroot_lq": "lq/000"}, r"dataroot_lq: lq/000/00000000\.png is a file; folder lq/000 "),
        ({"num_frame": 4}, "num_frame: 4 is even; the middle frame is made"),
        ({"io_backend": {"type": "lmdb"}}, "VideoTestDataset reads folders alone, not an LMDB"),
        ({"type": "VideoRecurrentTestDataset", "cache_data": False}, "set cache_data: true"),
        ({"type": "VideoTestVimeo90KDataset", "cache_data": True}, "set cache_data: false"),
    ],
)
def test_options(clips, changes, text):
    fails(text, {**clips, **changes})


def test_training_clips_of_another_length_than_basicsr_takes(tmp_path):
    """Its code holds the number."""
    (tmp_path / "meta.txt").write_text("000 100 (720,1280,3)\n001 90 (720,1280,3)\n")
    clips = {"name": "x", "type": "REDSRecurrentDataset", "meta_info_file": f"{tmp_path}/meta.txt"}
    fails(
        r"REDSRecurrentDataset takes clips of 100 frames alone, but .* says 90 of clip 001", clips
    )
    (tmp_path / "meta.txt").write_text("000 100 (720,1280,3)\n")
    check(clips)
    fails("meta_info_file is missing: the list of its clips", {**clips, "meta_info_file": None})
