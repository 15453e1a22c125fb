"""Stretches of low-resolution clips, in folders, video files and LMDBs."""

import cv2
import numpy as np
import pytest
import torch
from clip_files import moving, write_clips, write_frames, write_video
from conftest import photograph

from adabm_basicsr import AdaBMError
from adabm_basicsr.data.clip_dataset import ClipCalibrationDataset
from adabm_basicsr.data.prepare_clips import prepare_clips

PLAIN = {"use_hflip": False, "use_rot": False, "random_reverse": False}


def dataset(root, **options):
    named = {"name": "c", "dataroot_lq": str(root), "lq_size": 16, "num_frame": 3, "seed": 3}
    return ClipCalibrationDataset({**named, **options})


def pixels(patch):
    return (patch * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_a_patch_is_a_stretch_of_its_clip(tmp_path):
    frames = np.stack(moving(8))[..., ::-1]
    root = write_frames(tmp_path / "lr" / "000", moving(8)).parent
    patch = dataset(root, **PLAIN)[4]["lq"]
    assert patch.shape == (3, 3, 16, 16)
    assert patch.dtype == torch.float32
    windows = np.lib.stride_tricks.sliding_window_view(frames, (3, 16, 16, 3))
    found = (windows.reshape(-1, 3, 16, 16, 3) == pixels(patch)).all((1, 2, 3, 4))
    assert found.any()


def test_a_patch_depends_on_seed_epoch_and_index_alone(tmp_path):
    root = write_clips(tmp_path / "lr", 3, 8)
    first, second = dataset(root), dataset(root)
    for key in (7, 2, 0):
        assert torch.equal(first[key]["lq"], second[key]["lq"])
    assert not torch.equal(first[2]["lq"], first[5]["lq"])  # the same clip in the next epoch
    assert not torch.equal(first[2]["lq"], dataset(root, seed=4)[2]["lq"])


def test_flips_transposition_and_reversal_all_occur(tmp_path):
    root = write_clips(tmp_path / "lr", 1, 3, 16, 16)
    clip = dataset(root)
    assert len({clip[epoch]["lq"].numpy().tobytes() for epoch in range(120)}) == 16
    plain = dataset(root, **{**PLAIN, "random_reverse": True})
    assert len({plain[epoch]["lq"].numpy().tobytes() for epoch in range(20)}) == 2


def test_frames_of_a_patch_are_augmented_alike(tmp_path):
    picture = photograph(20, 24)
    root = write_frames(tmp_path / "lr" / "000", [picture] * 3).parent
    patches = [dataset(root)[epoch]["lq"] for epoch in range(8)]
    assert all(torch.equal(patch[0], patch[2]) for patch in patches)


def test_clips_are_taken_evenly_and_from_their_beginning(tmp_path):
    root = write_clips(tmp_path / "lr", 6, 5, 8, 8)
    chosen = dataset(root, num_clips=3, max_frames=4)
    assert [path[-3:] for path in chosen.paths] == ["000", "002", "004"]
    assert [len(clip) for clip in chosen.clips] == [4] * 3
    assert [image.shape for image in chosen.images] == [(8, 8, 3)] * 3
    batches = dataset(root, num_clips=3, dataset_enlarge_ratio=2).calibration_batches(4)
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 3, 16, 16), (2, 3, 3, 16, 16)]


def test_grey_clips(tmp_path):
    root = write_clips(tmp_path / "lr", 1, 3)
    write_video(root / "001.mp4", moving(3, 48, 64))
    grey = dataset(root, channels=1)
    assert [grey[index]["lq"].shape for index in range(2)] == [(3, 1, 16, 16)] * 2


def test_every_source_gives_the_same_patches(tmp_path):
    hr = write_clips(tmp_path / "hr", 3, 4, 48, 64)
    prepare_clips([hr], 2, tmp_path / "lr")
    prepare_clips([hr], 2, tmp_path / "lr.lmdb")
    (tmp_path / "meta.txt").write_text("000 4 (24,32,3)\n001 4 (24,32,3)\n002 4 (24,32,3)\n")
    listed = {"meta_info_file": str(tmp_path / "meta.txt")}
    lmdb = {"io_backend": {"type": "lmdb"}}
    expected = dataset(tmp_path / "lr")
    for other in (
        dataset(tmp_path / "lr", **listed),
        dataset(tmp_path / "lr.lmdb", **lmdb),
        dataset(tmp_path / "lr.lmdb", **lmdb, **listed),
    ):
        assert len(other) == 3
        for key in range(6):
            assert torch.equal(other[key]["lq"], expected[key]["lq"])


def test_a_list_of_nested_clips(tmp_path):
    """As Vimeo-90K is laid out."""
    write_frames(tmp_path / "lr" / "00001" / "0266", moving(7), "im{}.png")
    (tmp_path / "meta.txt").write_text("00001/0266 7 (24,32,3)\n")
    clips = dataset(tmp_path / "lr", meta_info_file=str(tmp_path / "meta.txt"), num_frame=7)
    assert clips[0]["lq"].shape == (7, 3, 16, 16)
    assert clips[0]["lq_path"].endswith("00001/0266")


def test_fixed_crops_come_back_in_every_epoch(tmp_path):
    fixed = dataset(write_clips(tmp_path / "lr", 2, 6), fixed_crops=True, dataset_enlarge_ratio=2)
    later = fixed[1 + 4 * 3]
    assert torch.equal(fixed[1]["lq"], later["lq"])
    assert fixed[1]["patch_key"] == later["patch_key"] == 1


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (
            lambda clip: [path.unlink() for path in sorted(clip.iterdir())[2:]],
            r"datasets: train: num_frame: 3, but clip .*001 has 2 frames",
        ),
        (lambda clip: (clip / "00000002.png").unlink(), r"clip .*001: 00000003\.png follows"),
        (lambda clip: (clip / "00000002.png").write_bytes(b"no"), r"00000002\.png is broken"),
        (
            lambda clip: cv2.imwrite(str(clip / "00000002.png"), photograph(16, 16)),
            r"clip .*001: 00000002\.png has 16x16 pixels, but 00000000\.png 32x24",
        ),
    ],
)
def test_clips_that_cannot_be_used(tmp_path, spoil, text):
    root = write_clips(tmp_path / "lr", 2, 5)
    spoil(root / "001")
    with pytest.raises(AdaBMError, match=text):
        dataset(root)


def lmdb_of(root, drop=""):
    """An LMDB of the clips of a folder, whose list leaves a frame out."""
    prepare_clips([root], 1, root.parent / "lr.lmdb")
    lines = (root.parent / "lr.lmdb" / "meta_info.txt").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(drop or "none")]
    (root.parent / "lr.lmdb" / "meta_info.txt").write_text("\n".join(kept))
    return {"root": root.parent / "lr.lmdb", "io_backend": {"type": "lmdb"}}


def test_lmdbs_that_cannot_be_used(tmp_path):
    options = lmdb_of(write_clips(tmp_path / "lr", 2, 5), drop="001/00000002")
    with pytest.raises(AdaBMError, match=r"clip .*lr\.lmdb:001: 00000003 follows 00000001"):
        dataset(**options)
    (tmp_path / "meta.txt").write_text("007 5 (24,32,3)\n")
    with pytest.raises(AdaBMError, match=r"LMDB .*lr\.lmdb has no clip '007', which the meta"):
        dataset(**options, meta_info_file=str(tmp_path / "meta.txt"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_frame": None}, "datasets: train: num_frame: None is not a positive whole number"),
        ({"max_frames": 2}, "datasets: train: max_frames: 2 is less than num_frame 3"),
        ({"num_images": 3}, "datasets: train: unknown key 'num_images'; did you mean"),
        ({"lq_size": 0}, "lq_size: 0 is not a positive whole number"),
    ],
)
def test_options(tmp_path, changes, text):
    with pytest.raises(AdaBMError, match=text):
        dataset(write_clips(tmp_path / "lr", 1, 3), **changes)
