"""Figures of a report as they are put together from records."""

from pathlib import Path

import pytest

from adabm_basicsr.report.figures import (
    ADAPTIVE,
    FULL,
    STATIC,
    gather,
    own_variant,
    training_record,
    worst_first,
)
from adabm_basicsr.runs.record import read_record

RUN = Path("results/tiny_test")


def test_layers_come_worst_first_with_their_distribution(at_run):
    layers = gather(RUN)["layers"]
    ratios = [layer["sqnr_db"] for layer in layers]
    assert ratios == sorted(ratios)
    assert len(layers) == 8
    assert sum(layer["macs_share"] for layer in layers) == pytest.approx(1)
    for layer in layers:
        assert sum(layer["counts"]) > 1000
        assert layer["lowest"] < layer["highest"]


def test_layers_without_noise_come_last():
    layers = [{"sqnr_db": None}, {"sqnr_db": 20.0}, {"sqnr_db": 10.0}]
    assert [layer["sqnr_db"] for layer in worst_first(layers)] == [10.0, 20.0, None]


@pytest.mark.parametrize(
    ("recipe", "variant"), [(None, FULL), ("static", STATIC), ("fast", ADAPTIVE)]
)
def test_variant_of_a_run(recipe, variant):
    assert own_variant({"recipe": recipe}) == variant


def test_the_run_that_made_a_network(at_run):
    test = read_record(RUN)
    training = read_record(Path("experiments/tiny"))
    assert training_record(training) == training
    assert training_record(test) == training
    test["options"]["path"]["pretrain_network_g"] = "elsewhere/net.pth"
    assert training_record(test) is None
