"""Frames of clips, in folders and in video files, whole and broken."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from clip_files import moving, write_frames, write_video
from conftest import photograph

from adabm_basicsr import AdaBMError
from adabm_basicsr.data.frames import (
    FrameRange,
    list_clips,
    list_frames,
    parse_frames,
    read_clip,
)


def rgb(frames):
    return [frame[..., ::-1] for frame in frames]


def test_a_folder_of_frames(tmp_path):
    frames = moving(5)
    folder = write_frames(tmp_path / "clip", frames)
    assert np.array_equal(list(read_clip(folder)), rgb(frames))
    assert np.array_equal(list(read_clip(folder, FrameRange(1, 3))), rgb(frames[1:4]))


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "mp4v"), ("clip.avi", "MJPG")])
def test_a_video(tmp_path, name, codec):
    frames = moving(6, 48, 64)
    path = write_video(tmp_path / name, frames, codec)
    read = np.array(list(read_clip(path)), float)
    assert read.shape == (6, 48, 64, 3)
    assert np.abs(read - rgb(frames)).mean() < 12  # lossy
    assert np.array_equal(list(read_clip(path, FrameRange(2, 4))), read[2:5])


@pytest.mark.parametrize("name", ["{}.png", "{:08d}.png", "shot_2_{:02d}x4.png", "im{}.png"])
def test_frames_come_in_the_order_of_their_numbers(tmp_path, name):
    folder = write_frames(tmp_path / "clip", moving(12, 8, 8), name)
    assert [path.name for path in list_frames(folder)] == [name.format(i) for i in range(12)]


def test_a_clip_may_be_one_frame_and_begin_anywhere(tmp_path):
    folder = write_frames(tmp_path / "clip", moving(3, 8, 8))
    (folder / "00000000.png").unlink()
    assert [path.name for path in list_frames(folder)] == ["00000001.png", "00000002.png"]
    (folder / "00000001.png").unlink()
    assert len(list_frames(folder)) == 1


def remove_two(folder):
    (folder / "00000001.png").unlink()
    (folder / "00000002.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (remove_two, r"clip .*clip: 00000003\.png follows 00000000\.png; number the frames with"),
        (
            lambda folder: cv2.imwrite(str(folder / "x.png"), photograph(24, 32)),
            r"clip .*clip: x\.png has no number; frames go by their numbers",
        ),
        (
            lambda folder: cv2.imwrite(str(folder / "x4.png"), photograph(24, 32)),
            r"00000000\.png and x4\.png are not frames of one clip; name frames alike",
        ),
        (
            lambda folder: cv2.imwrite(str(folder / "3.png"), photograph(24, 32)),
            r"00000003\.png and 3\.png have the same number",
        ),
        (
            lambda folder: write_frames(folder, [photograph(12, 16)], "00000004.png"),
            r"00000004\.png has 16x12 pixels, but 00000000\.png 32x24; frames of a clip must be",
        ),
        (lambda folder: (folder / "00000002.png").write_bytes(b"no"), r"0002\.png is broken"),
    ],
)
def test_folders_that_are_no_clip(tmp_path, spoil, text):
    folder = write_frames(tmp_path / "clip", moving(4))
    spoil(folder)
    with pytest.raises(AdaBMError, match=text):
        list(read_clip(folder))


def test_names_that_differ_in_two_numbers(tmp_path):
    folder = write_frames(tmp_path / "clip", moving(2, 8, 8), "1_{}.png")
    write_frames(folder, moving(2, 8, 8), "2_{}.png")
    with pytest.raises(AdaBMError, match="names of frames differ in 2 numbers, not in one"):
        list_frames(folder)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


UNREADABLE = r"video .*clip\.\w+ is broken, or of a codec that OpenCV lacks; H\.264 in an MP4"


@pytest.mark.parametrize(
    ("name", "spoil", "text"),
    [
        ("clip.mp4", lambda path: path.write_bytes(b""), r"video .*clip\.mp4 is empty"),
        ("clip.mp4", lambda path: path.write_bytes(b"hello"), UNREADABLE),
        ("clip.mp4", lambda path: cut(path, 0.5), UNREADABLE),
        (
            "clip.avi",
            lambda path: path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZZZZ")),
            UNREADABLE,
        ),
        ("clip.avi", lambda path: cut(path, 0.7), r"breaks off after \d+ of 20 frames"),
    ],
)
def test_videos_that_cannot_be_read(tmp_path, capfd, name, spoil, text):
    codec = {".mp4": "mp4v", ".avi": "MJPG"}[Path(name).suffix]
    path = write_video(tmp_path / name, moving(20, 96, 128), codec)
    spoil(path)
    with pytest.raises(AdaBMError, match=text):
        list(read_clip(path))
    assert capfd.readouterr().err == ""


def test_more_frames_than_there_are(tmp_path):
    frames = moving(4, 48, 64)
    for clip in (write_frames(tmp_path / "a", frames), write_video(tmp_path / "a.mp4", frames)):
        with pytest.raises(AdaBMError, match=r"a.* has 4 frames, but frames 2-4 are asked for"):
            list(read_clip(clip, FrameRange(2, 4)))


def test_larger_videos_than_allowed(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving(2, 48, 64))
    with pytest.raises(AdaBMError, match=r"64x48 pixels, more than max_pixels 3000 allows"):
        next(read_clip(path, max_pixels=3000))


def test_clips_below_a_folder_are_named_by_their_files(tmp_path):
    root = tmp_path / "root"
    for name in ("a", ".hidden"):
        write_frames(root / name, moving(2, 8, 8))
    write_video(root / "b.c.mp4", moving(2))
    (root / "notes.txt").write_text("no clip")
    assert list_clips([root], "--clips") == {"a": root / "a", "b.c": root / "b.c.mp4"}
    assert list_clips([root / "a"], "--clips") == {"a": root / "a"}
    assert list_clips([root / "b.c.mp4"], "--clips") == {"b.c": root / "b.c.mp4"}


def test_a_clip_that_is_named_twice_is_taken_once(tmp_path):
    clip = write_frames(tmp_path / "root" / "a", moving(2, 8, 8))
    again = tmp_path / "root" / "a" / ".." / "a"
    assert list_clips([clip, tmp_path / "root", again], "--clips") == {"a": clip}


def test_folders_without_frames(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdaBMError, match=r"^clip .*empty: it holds no frames \(\.bmp, "):
        list(read_clip(tmp_path / "empty"))
    write_frames(tmp_path / "nested" / "a", moving(1, 8, 8))
    nested = "^clip .*nested: it holds folders, no frames; clips are looked for one level down$"
    with pytest.raises(AdaBMError, match=nested):
        list(read_clip(tmp_path / "nested"))


def test_what_is_no_clip(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdaBMError, match=r"--clips: folder .*empty holds neither frames nor clips"):
        list_clips([tmp_path / "empty"], "--clips")
    with pytest.raises(AdaBMError, match=r"--clips: clip .*gone does not exist"):
        list_clips([tmp_path / "gone"], "--clips")
    write_frames(tmp_path / "film", moving(1), "cover.png")
    write_video(tmp_path / "film" / "film.mp4", moving(2))
    beside = (
        r"--clips: folder .*film holds an image, cover\.png, beside a clip, film\.mp4; give the"
    )
    with pytest.raises(AdaBMError, match=beside):
        list_clips([tmp_path / "film"], "--clips")
    folders = [write_frames(tmp_path / name / "x", moving(2, 8, 8)) for name in ("a", "b")]
    with pytest.raises(AdaBMError, match=r"--clips: .*a/x and .*b/x would both become clip x"):
        list_clips(folders, "--clips")


def test_frames_in_words():
    assert parse_frames("--frames", "0-179") == FrameRange(0, 179)
    for wrong in ("", "5", "9-3", "-1-4", "0-", "a-b", "0-99999999999"):
        with pytest.raises(AdaBMError, match=f"--frames: '{wrong}' is not FIRST-LAST, such as"):
            parse_frames("--frames", wrong)
