"""Training states and random generators."""

import random

import numpy as np
import pytest
import torch

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.runs.training_state import (
    find_state,
    newest_state,
    random_state,
    read_state,
    resumed_labels,
    set_random_state,
)


@pytest.fixture
def saved(tmp_path):
    """States of three iterations; the network of the latest wasn't saved."""
    for iteration in (9, 10, 11):
        (tmp_path / f"{iteration}.state").touch()
    (tmp_path / "notes.state").touch()
    for iteration in (9, 10):
        (tmp_path / f"net_g_{iteration}.pth").touch()
    return tmp_path


def test_the_newest_state_has_its_networks(saved):
    assert newest_state(saved, saved, ["g"]).name == "10.state"
    assert newest_state(saved, saved, ["g", "d"]) is None


def test_networks_that_are_not_resumed_are_not_waited_for(saved):
    path = {"training_states": saved, "models": saved, "ignore_resume_networks": ["network_d"]}
    opt = {"network_g": {}, "network_d": {}, "path": path}
    assert resumed_labels(opt) == ["g"]
    assert find_state(opt).name == "10.state"


def test_random_generators_go_on(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    torch.save(random_state(), tmp_path / "random.pth")
    drawn = draw()
    set_random_state(torch.load(tmp_path / "random.pth"))
    assert draw() == drawn


@pytest.mark.parametrize(
    ("content", "missing"),
    [({"epoch": 1, "iter": 2}, "optimizers, schedulers"), ([1], "epoch, iter")],
)
def test_other_files_are_no_training_state(content, missing, tmp_path):
    torch.save(content, tmp_path / "1.state")
    with pytest.raises(AdaBMError, match=rf"1\.state is no training state: {missing}"):
        read_state(tmp_path / "1.state")
