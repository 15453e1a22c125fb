"""Validation sets and metrics, checked as BasicSR is going to read and compute them."""

import cv2
import numpy as np
import pytest
from clip_files import write_clips
from conftest import write_images

from adabm_basicsr import AdaBMError
from adabm_basicsr.data.prepare import prepare
from adabm_basicsr.data.prepare_clips import prepare_clips
from adabm_basicsr.options.datasets import check_datasets, check_metrics

PSNR = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True, "better": "higher"}


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Options of a validation set of two pairs, in folders and in LMDBs."""
    monkeypatch.chdir(tmp_path)
    prepare(
        write_images(tmp_path / "hr", [(48, 64), (56, 48)]), 2, tmp_path / "lq", tmp_path / "gt"
    )
    for name in ("lq", "gt"):
        prepare(tmp_path / name, 1, tmp_path / f"{name}.lmdb")
    return {"name": "Val", "type": "PairedImageDataset", "dataroot_lq": "lq", "dataroot_gt": "gt"}


def check(dataset, scale=2):
    return check_datasets({"scale": scale, "datasets": {"val": dataset}})


def fails(text, dataset, scale=2):
    with pytest.raises(AdaBMError, match=text):
        check(dataset, scale)


def options_of(source, folder):
    """What a dataset names its images by."""
    if source == "list":
        (folder / "meta.txt").write_text("img_000.png (48,64,3)\nimg_001.png (56,48,3)\n")
        return {"meta_info_file": "meta.txt"}
    if source == "lmdb":
        return {"dataroot_lq": "lq.lmdb", "dataroot_gt": "gt.lmdb", "io_backend": {"type": "lmdb"}}
    return {}


@pytest.mark.parametrize("source", ["folder", "list", "lmdb"])
def test_sizes_of_the_images_to_compare(pairs, tmp_path, source):
    pairs |= options_of(source, tmp_path)
    assert check(pairs) == [(48, 64), (56, 48)]
    pairs["type"] = "SingleImageDataset"
    del pairs["dataroot_gt"]
    if source != "list":
        assert check(pairs) == [(48, 64), (56, 48)]


@pytest.mark.parametrize("source", ["folder", "list", "lmdb"])
def test_basicsr_reads_what_passed(pairs, tmp_path, source):
    from basicsr.data import build_dataset

    pairs |= options_of(source, tmp_path)
    check(pairs)
    dataset = build_dataset({**pairs, "phase": "val", "scale": 2})
    assert [tuple(dataset[index]["gt"].shape[1:]) for index in range(2)] == [(48, 64), (56, 48)]


def test_pairs_go_by_name(pairs, tmp_path):
    (tmp_path / "lq" / "img_001.png").rename(tmp_path / "lq" / "other.png")
    fails(r"image lq/img_001\.png cannot be read: No such file", pairs)
    (tmp_path / "lq" / "other.png").rename(tmp_path / "lq" / "img_001x2.png")
    (tmp_path / "lq" / "img_000.png").rename(tmp_path / "lq" / "img_000x2.png")
    assert len(check({**pairs, "filename_tmpl": "{}x2"})) == 2


@pytest.mark.parametrize(
    ("kind", "of_clips"),
    [
        ("PairedImageDataset", "VideoTestDataset or .* or VideoTestVimeo90KDataset"),
        ("CalibrationDataset", "ClipCalibrationDataset"),
    ],
)
def test_folders_of_clips_in_place_of_images(pairs, tmp_path, kind, of_clips):
    prepare_clips([write_clips(tmp_path / "films", 2, 3)], 2, tmp_path / "low", tmp_path / "true")
    message = (
        rf"dataroot_lq: folder low holds no images \(.*\), but folders; for clips .*{of_clips}$"
    )
    fails(message, {**pairs, "type": kind, "dataroot_lq": "low", "dataroot_gt": "true"})


@pytest.mark.parametrize("template", ["x", "{}{}", "{0}", "{", "{}}", "{.__class__}"])
def test_templates_of_names(pairs, template):
    fails(
        r"datasets: val: filename_tmpl: .* must hold \{\} once",
        {**pairs, "filename_tmpl": template},
    )


def test_a_template_does_not_lead_out(pairs):
    fails(
        "filename_tmpl: '../img_000.png' lies outside the data root lq",
        {**pairs, "filename_tmpl": "../{}"},
    )


def test_a_list_does_not_lead_out(pairs, tmp_path):
    (tmp_path / "meta.txt").write_text("../hr/img_000.png (48,64,3)\n")
    fails(
        "'../hr/img_000.png' lies outside the data root gt", {**pairs, "meta_info_file": "meta.txt"}
    )


def test_lists_of_lmdbs_must_agree(pairs, tmp_path):
    pairs |= {"dataroot_lq": "lq.lmdb", "dataroot_gt": "gt.lmdb", "io_backend": {"type": "lmdb"}}
    (tmp_path / "gt.lmdb" / "meta_info.txt").write_text("img_000.png (48,64,3) 1\n")
    fails("the lists of dataroot_lq and dataroot_gt name different images", pairs)
    fails("dataroot_lq: lq must end in .lmdb", {**pairs, "dataroot_lq": "lq"})


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (
            {"type": "memcached", "sys_path": "evil"},
            "io_backend: type: unknown value 'memcached'; valid: 'disk', 'lmdb'",
        ),
        ({"type": "disk", "sys_path": "evil"}, "io_backend: unknown key 'sys_path'"),
    ],
)
def test_backends_that_would_run_code(pairs, backend, text):
    fails(text, {**pairs, "io_backend": backend})


def test_float_images_are_not_for_basicsr(pairs, tmp_path):
    for folder in ("lq", "gt"):
        cv2.imwrite(str(tmp_path / folder / "float.tiff"), np.full((48, 48, 3), 0.5, np.float32))
    fails("image float.tiff has float values, which BasicSR doesn't read", pairs, scale=1)


def test_larger_images_than_allowed(pairs):
    fails(
        "img_000.png has 32x24 pixels, more than max_pixels 700 allows",
        {**pairs, "max_pixels": 700},
    )


def test_scale_is_needed(pairs):
    with pytest.raises(AdaBMError, match="datasets: val: scale is missing"):
        check_datasets({"datasets": {"val": pairs}})


def test_a_folder_without_clips_to_calibrate_on(tmp_path):
    clips = {"name": "Clips", "type": "ClipCalibrationDataset", "dataroot_lq": str(tmp_path)}
    with pytest.raises(AdaBMError, match=r"train: dataroot_lq: folder .* holds neither frames nor"):
        check_datasets({"datasets": {"train": clips}})


def test_metrics_that_can_be_computed():
    check_metrics({"psnr": PSNR, "ssim": {**PSNR, "type": "calculate_ssim"}}, [(48, 64)])
    check_metrics({"niqe": {"type": "calculate_niqe", "crop_border": 4}}, [(500, 400)])
    check_metrics({}, [])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"crop_border": "two"}, "val: metrics: psnr: with crop_border 'two', .* it fails"),
        ({"crop_border": 24}, "gives nan on an image of 64x48 pixels"),
        ({"crop_border": None}, "it fails"),
        ({"input_order": "WHC"}, "Wrong input_order WHC"),
    ],
)
def test_metrics_that_cannot(changes, text):
    with pytest.raises(AdaBMError, match=text):
        check_metrics({"psnr": {**PSNR, **changes}}, [(48, 64), (90, 90)])
