"""Patches of low-resolution images of every kind."""

import cv2
import numpy as np
import pytest
import torch
from conftest import photograph, write_images

from adabm_basicsr.errors import AdaBMError


def dataset(root, **options):
    from adabm_basicsr.data.calibration_dataset import CalibrationDataset

    return CalibrationDataset(
        {"name": "c", "dataroot_lq": str(root), "lq_size": 16, "seed": 3, **options}
    )


def test_a_patch_depends_on_seed_epoch_and_index_alone(tmp_path):
    root = write_images(tmp_path / "lr", [(40, 50)] * 4)
    first, second = dataset(root), dataset(root)
    for key in (9, 2, 0):
        assert torch.equal(first[key]["lq"], second[key]["lq"])
    assert not torch.equal(first[2]["lq"], first[6]["lq"])  # the same image in the next epoch
    assert not torch.equal(first[2]["lq"], dataset(root, seed=4)[2]["lq"])


def test_patches_come_from_their_image_unchanged(tmp_path):
    root = write_images(tmp_path / "lr", [(40, 50)])
    image = cv2.cvtColor(photograph(40, 50), cv2.COLOR_BGR2RGB)
    plain = dataset(root, use_hflip=False, use_rot=False)
    patch = plain[5]["lq"]
    assert patch.shape == (3, 16, 16)
    assert patch.min() >= 0
    assert patch.max() <= 1
    pixels = (patch * 255).round().byte().permute(1, 2, 0).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(image, (16, 16, 3)).reshape(-1, 16, 16, 3)
    assert (windows == pixels).all((1, 2, 3)).any()


def test_flips_and_transposition_all_occur(tmp_path):
    root = write_images(tmp_path / "lr", [(16, 16)])
    patches = {dataset(root)[epoch]["lq"].numpy().tobytes() for epoch in range(60)}
    assert len(patches) == 8
    assert (
        len({dataset(root, use_rot=False)[epoch]["lq"].numpy().tobytes() for epoch in range(30)})
        == 2
    )


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey.png", photograph(40, 40)[..., 0]),
        ("alpha.png", np.dstack([photograph(40, 40), np.full((40, 40), 7, np.uint8)])),
        ("deep.png", photograph(40, 40).astype(np.uint16) * 257),
        ("small.png", photograph(9, 12)),
        ("float.tiff", photograph(40, 40).astype(np.float32) / 255),
        ("photo.jpg", photograph(40, 40)),
    ],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_every_kind_of_image(tmp_path, name, image, channels):
    cv2.imwrite(str(tmp_path / name), image)
    patch = dataset(tmp_path, channels=channels)[0]["lq"]
    assert patch.shape == (channels, 16, 16)
    assert patch.dtype == torch.float32
    assert 0 <= patch.min() < patch.max() <= 1


def test_sixteen_bits_equal_eight(tmp_path):
    for folder, image in (
        ("a", photograph(40, 40)),
        ("b", photograph(40, 40).astype(np.uint16) * 257),
    ):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "x.png"), image)
    torch.testing.assert_close(dataset(tmp_path / "a")[0]["lq"], dataset(tmp_path / "b")[0]["lq"])


def test_images_are_taken_evenly(tmp_path):
    root = write_images(tmp_path / "lr", [(16, 16)] * 10)
    paths = [path.rsplit("_", 1)[1] for path in dataset(root, num_images=4).paths]
    assert paths == ["000.png", "002.png", "005.png", "007.png"]


def test_meta_info_file_chooses_images(tmp_path):
    root = write_images(tmp_path / "lr", [(16, 16)] * 3)
    (tmp_path / "meta.txt").write_text("img_002.png (16,16,3)\n\nimg_000.png (16,16,3)\n")
    chosen = dataset(root, meta_info_file=str(tmp_path / "meta.txt"))
    assert [path[-7:] for path in chosen.paths] == ["002.png", "000.png"]


def test_meta_info_naming_a_missing_image(tmp_path):
    (tmp_path / "meta.txt").write_text("gone.png\n")
    with pytest.raises(AdaBMError, match=r"gone\.png cannot be read: No such file"):
        dataset(tmp_path, meta_info_file=str(tmp_path / "meta.txt"))


def test_lmdb_gives_the_same_patches_as_the_folder(tmp_path):
    from adabm_basicsr.data.prepare import prepare

    hr = write_images(tmp_path / "hr", [(64, 72)] * 3)
    prepare(hr, 2, tmp_path / "lr")
    prepare(hr, 2, tmp_path / "lr.lmdb")
    folder = dataset(tmp_path / "lr")
    lmdb = dataset(tmp_path / "lr.lmdb", io_backend={"type": "lmdb"})
    for key in range(6):
        assert torch.equal(folder[key]["lq"], lmdb[key]["lq"])


def test_resumed_epoch_leaves_out_what_was_given(tmp_path):
    root = write_images(tmp_path / "lr", [(16, 16)] * 6)
    whole = dataset(root, batch_size_per_gpu=2)
    resumed = dataset(root, batch_size_per_gpu=2, resume_at={"epoch": 1, "iter": 5, "gpus": 1})
    assert resumed.epoch_keys(1, 0, 1) == whole.epoch_keys(1, 0, 1)[4:]
    assert resumed.epoch_keys(2, 0, 1) == whole.epoch_keys(2, 0, 1)


def test_processes_share_the_epoch_of_one(tmp_path):
    data = dataset(write_images(tmp_path / "lr", [(16, 16)] * 5), dataset_enlarge_ratio=2)
    whole = data.epoch_keys(3, 0, 1)
    assert sorted(whole) == list(range(30, 40))
    assert whole != sorted(whole)
    first, second = (data.epoch_keys(3, rank, 2) for rank in (0, 1))
    assert [key for pair in zip(first, second, strict=True) for key in pair] == whole
    data.opt["batch_size_per_gpu"] = 2
    first, second = (data.epoch_keys(3, rank, 2) for rank in (0, 1))
    assert [*first[:2], *second[:2], *first[2:], *second[2:]] == whole[:8]  # whole batches
    assert len(first) == len(second) == data.items_per_process(2) == 4


def test_sampler_hands_over_the_epoch(tmp_path):
    from basicsr.data.data_sampler import EnlargedSampler

    root = write_images(tmp_path / "lr", [(16, 16)] * 3)
    sampler = EnlargedSampler(dataset(root, dataset_enlarge_ratio=2), 1, 0, 2)
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(6, 12))
    other = EnlargedSampler([10, 20, 30], 1, 0)
    other.set_epoch(1)
    assert sorted(other) == [0, 1, 2]


def test_meta_info_file_for_an_lmdb(tmp_path):
    from adabm_basicsr.data.prepare import prepare

    prepare(write_images(tmp_path / "hr", [(64, 72)] * 3), 2, tmp_path / "lr.lmdb")
    (tmp_path / "meta.txt").write_text("img_001.png (32,36,3) 1\n")
    options = {"io_backend": {"type": "lmdb"}, "meta_info_file": str(tmp_path / "meta.txt")}
    assert len(dataset(tmp_path / "lr.lmdb", **options)) == 1


def test_fixed_crops_come_back_in_every_epoch_with_their_key(tmp_path):
    root = write_images(tmp_path / "lr", [(40, 50)] * 4)
    fixed = dataset(root, fixed_crops=True, dataset_enlarge_ratio=2)
    for key in (0, 5):
        later = fixed[key + 8 * 3]
        assert torch.equal(fixed[key]["lq"], later["lq"])
        assert fixed[key]["patch_key"] == later["patch_key"] == key
    assert not torch.equal(fixed[0]["lq"], fixed[4]["lq"])  # another patch of the same image
    assert "patch_key" not in dataset(root)[0]
    assert "patch_key" not in dataset(root, fixed_crops=None)[0]
    with pytest.raises(AdaBMError, match="fixed_crops: 'yes' is not true or false"):
        dataset(root, fixed_crops="yes")
