"""Images of a run, found again from its record."""

import os
from pathlib import Path

import pytest
import torch

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.report.data import directory_of, picture_sets
from adabm_basicsr.runs.record import read_record


def test_validation_sets_of_a_run(at_run, monkeypatch, tmp_path):
    record = read_record(Path("results/tiny_test"))
    monkeypatch.chdir(tmp_path)
    with directory_of(record):
        (pictures,) = picture_sets(record)
        assert pictures.name == "Val"
        assert [picture.name for picture in pictures] == ["img_000", "img_001"]
        assert pictures[0].low.shape == (1, 3, 24, 32)
        assert pictures[0].truth.shape == (1, 3, 48, 64)
    assert Path.cwd() == tmp_path


def test_calibration_images_of_a_run_without_validation(at_run):
    record = read_record(Path("experiments/tiny"))
    (pictures,) = picture_sets(record)
    assert len(pictures) == 6
    assert pictures[0].truth is None
    assert pictures[0].low.shape == (1, 3, 40, 48)
    assert not torch.equal(pictures[0].low, pictures[5].low)


def test_the_key_follows_the_files(at_run):
    record = read_record(Path("results/tiny_test"))
    (before,) = picture_sets(record)
    file = Path("val/lq/img_000.png")
    times = file.stat()
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000_000))
    (after,) = picture_sets(record)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    (restored,) = picture_sets(record)
    assert before.key == restored.key != after.key


def test_a_folder_that_is_gone():
    with (
        pytest.raises(AdaBMError, match="the folder gone that the run was started in is gone"),
        directory_of({"directory": "gone"}),
    ):
        pass
