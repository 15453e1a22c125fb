"""Clips laid out for BasicSR, from frames and from video files."""

import cv2
import numpy as np
import pytest
from clip_files import FRAME, moving, write_clips, write_frames, write_video
from faults import FORKS, kill_this_process

from adabm_basicsr import AdaBMError
from adabm_basicsr.data import prepare_clips as prepare_module
from adabm_basicsr.data.frames import FrameRange
from adabm_basicsr.data.prepare import downscale, mod_crop
from adabm_basicsr.data.prepare_clips import prepare_clips
from adabm_basicsr.data.sources import open_lmdb, read_keys


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def numbered(clip, count):
    return [f"{clip}/{FRAME.format(number)}" for number in range(count)]


def read(path):
    return cv2.imread(str(path))


def test_clips_are_laid_out_as_basicsr_reads_them(tmp_path):
    frames = moving(11, 26, 33)
    write_frames(tmp_path / "in" / "city", frames, "{}.png")  # 10.png is before 2.png by name
    write_video(tmp_path / "film.mp4", moving(3, 48, 64))
    paths = [tmp_path / "in", tmp_path / "film.mp4"]
    low, high = tmp_path / "lr", tmp_path / "gt"
    assert prepare_clips(paths, 4, low, high) == {"city": 11, "film": 3}
    expected = [*numbered("city", 11), *numbered("film", 3)]
    assert names(low) == names(high) == expected
    for number, frame in enumerate(frames):
        cropped = mod_crop(frame, 4)
        assert np.array_equal(read(high / "city" / FRAME.format(number)), cropped)
        # The same bicubic that images get.
        assert np.array_equal(read(low / "city" / FRAME.format(number)), downscale(cropped, 4))


def test_some_frames_made_smaller_first(tmp_path):
    frames = moving(6, 34, 32)
    write_frames(tmp_path / "clip", frames)
    chosen = FrameRange(2, 4)
    counts = prepare_clips([tmp_path / "clip"], 4, mod=tmp_path / "gt", frames=chosen, shrink=2)
    assert counts == {"clip": 3}
    assert names(tmp_path / "gt") == numbered("clip", 3)
    small = downscale(frames[2], 2)[:16]
    assert np.array_equal(read(tmp_path / "gt" / "clip" / FRAME.format(0)), small)


def test_an_lmdb_has_the_keys_of_basicsr(tmp_path):
    root = write_clips(tmp_path / "in", 2, 3)
    prepare_clips([root], 4, tmp_path / "lr")
    prepare_clips([root], 4, tmp_path / "lr.lmdb")
    keys = read_keys(tmp_path / "lr.lmdb" / "meta_info.txt", tmp_path / "lr.lmdb")
    assert [f"{key}.png" for key in keys] == numbered("000", 3) + numbered("001", 3)
    with open_lmdb(tmp_path / "lr.lmdb") as entry:
        for key in keys:
            pixels = cv2.imdecode(np.frombuffer(entry(key), np.uint8), cv2.IMREAD_COLOR)
            assert np.array_equal(pixels, read(tmp_path / "lr" / f"{key}.png"))
    assert len(list((tmp_path / "lr.lmdb").iterdir())) == 3


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda root: write_frames(root / "001", moving(1, 8, 8), "00000003.png"), "of one size"),
        (lambda root: (root / "001" / "00000001.png").unlink(), "without gaps"),
        (lambda root: write_video(root / "002.mp4", moving(2, 48, 64)).write_bytes(b""), "empty"),
        (
            lambda root: write_frames(root / "002", moving(2, 5, 9)),
            "a frame of clip .*002 has 9x5 pixels; at scale 4 it has to have at least 8x8",
        ),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing(tmp_path, spoil, text):
    root = write_clips(tmp_path / "in", 2, 3)
    spoil(root)
    with pytest.raises(AdaBMError, match=text):
        prepare_clips([root], 4, tmp_path / "lr", tmp_path / "gt")
    assert not (tmp_path / "lr").exists()
    assert not (tmp_path / "gt").exists()


def test_targets(tmp_path):
    root = write_clips(tmp_path / "in", 1, 2)
    with pytest.raises(AdaBMError, match="--out, --mod or both are needed"):
        prepare_clips([root], 4)
    with pytest.raises(AdaBMError, match=r"--mod: .*lr is the same as --out"):
        prepare_clips([root], 4, tmp_path / "lr", tmp_path / "lr")
    with pytest.raises(AdaBMError, match=r"--mod: .*in exists and is not an empty folder"):
        prepare_clips([root], 4, mod=root)
    (root / "000").rename(root / "a.b")
    with pytest.raises(AdaBMError, match=r"a\.b makes no key of an LMDB; .*, without a dot"):
        prepare_clips([root], 4, tmp_path / "lr.lmdb")


def prepare_and_die(root, out, mod):
    """Kill this process where the fourth frame, of the second clip, is written."""
    original, written = prepare_module.write_pair, []

    def write_pair(*args):
        written.append(args)
        if len(written) == 4:
            kill_this_process()
        original(*args)

    prepare_module.write_pair = write_pair
    prepare_clips([root], 2, out, mod)


def test_a_run_that_was_killed_is_done_anew(tmp_path):
    root = write_clips(tmp_path / "in", 2, 3)
    out, mod = tmp_path / "lr.lmdb", tmp_path / "mod"
    child = FORKS.Process(target=prepare_and_die, args=(root, out, mod))
    child.start()
    child.join(60)
    assert child.exitcode == -9
    assert [path for folder in (out, mod) for path in folder.glob("[!.]*")] == []
    assert prepare_clips([root], 2, out, mod) == {"000": 3, "001": 3}
    assert names(out) == ["data.mdb", "lock.mdb", "meta_info.txt"]
    assert names(mod) == numbered("000", 3) + numbered("001", 3)


@pytest.mark.shared
def test_the_films_at_hand(shared, tmp_path):
    film = shared / "data" / "video" / "bikes.mp4"
    counts = prepare_clips([film], 4, tmp_path / "lr", tmp_path / "gt", FrameRange(246, 249))
    assert counts == {"bikes": 4}
    assert read(tmp_path / "gt" / "bikes" / FRAME.format(3)).shape == (272, 640, 3)
    assert read(tmp_path / "lr" / "bikes" / FRAME.format(3)).shape == (68, 160, 3)
