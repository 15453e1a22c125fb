"""``run.json``: what a run records of itself."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.runs.record import describe_phase, plain, read_record, write_json


def test_the_time_of_a_phase_and_its_losses_are_noted(at_run):
    phases = read_record(Path("experiments/tiny"))["phases"]
    assert [phase["name"] for phase in phases] == [
        "Calibration",
        "Clipping search",
        "Fine-tuning weight ranges, iterations 1 to 4",
        "Fine-tuning activation ranges, iterations 5 to 8",
        "Fine-tuning bit mappings, iterations 9 to 12",
    ]
    assert phases[0]["loss_before"] is None
    for before, after in pairwise(phases):
        assert before["loss_after"] == after["loss_before"]
    assert all(phase["seconds"] > 0 for phase in phases)


def test_a_phase_in_a_line():
    phase = {
        "name": "Clipping search",
        "seconds": 2.46,
        "loss_before": 0.8874,
        "loss_after": 0.8122,
    }
    assert describe_phase(phase) == "Clipping search: 2.5 s, loss 0.8874 -> 0.8122"
    phase |= {"loss_before": None, "loss_after": None}
    assert describe_phase(phase) == "Clipping search: 2.5 s"


@pytest.mark.parametrize("content", ["", "[]", '{"format": 99}'])
def test_a_damaged_record_is_named(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(AdaBMError, match=r"run\.json"):
        read_record(tmp_path)


def test_json_takes_any_value(tmp_path):
    content = {1: (1.5, float("nan"), None), "path": Path("a"), "flag": True}
    expected = {"1": [1.5, None, None], "path": "a", "flag": True}
    assert plain(content) == expected
    write_json(tmp_path / "content.json", content)
    assert json.loads((tmp_path / "content.json").read_text()) == expected
