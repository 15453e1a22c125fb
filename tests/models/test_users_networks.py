"""Option files of networks that training code of ours can't follow, or that fail."""

import json
import re

import pytest
import torch
import users_networks
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import write_images
from small_networks import GlobalAttention

from adabm_basicsr import environment
from adabm_basicsr.commands.main import main

LATEST = "experiments/tiny/models/net_g_latest.pth"


@pytest.fixture
def options(workspace, monkeypatch):
    """Option files of a run, for a network of `users_networks`."""

    def make(name, recipe="best"):
        kind = getattr(users_networks, name)
        monkeypatch.setitem(ARCH_REGISTRY._obj_map, name, kind)
        state = {"weight": torch.zeros(1)}
        if name != "ConstructorRaises":
            state = kind().state_dict()
        torch.save({"params": state}, "weights.pth")
        network = {
            "type": "AdaBMNetwork",
            "network": {"type": name},
            "w_bits": 8,
            "a_bits": 8,
            "recipe": recipe,
        }
        train = workspace.train_options(
            network_g=network, path__pretrain_network_g="weights.pth", train__total_iter=6
        )
        metrics = {"self_psnr": {"type": "calculate_self_psnr"}}
        test = workspace.test_options(network_g=network, val__metrics=metrics)
        return str(workspace.write(train, "train.yml")), str(workspace.write(test, "test.yml"))

    return make


@pytest.mark.parametrize("recipe", ["best", "paper"])
@pytest.mark.parametrize("name", ["NoBackward", "WithNumpy", "WholeInference"])
def test_a_network_without_gradients_is_calibrated(name, recipe, options, workspace, capsys):
    train, test = options(name, recipe)
    main(["train", "-opt", train])
    said = capsys.readouterr().err
    assert said.count("can't be run with gradients") == 1
    assert f"{users_networks.__file__}:" in said

    main(["test", "-opt", test])
    metrics = next((workspace.root / "results" / "tiny_test").rglob("metrics.json"))
    assert json.loads(metrics.read_text())["Val"]["self_psnr"] > 35
    record = json.loads(next((workspace.root / "experiments/tiny").rglob("run.json")).read_text())
    assert [phase["name"] for phase in record["phases"]] == ["Calibration"]


def test_a_resumed_run_without_gradients_ends_as_the_whole_one(options, workspace):
    train, _ = options("NoBackward")
    main(["train", "-opt", train])
    whole = torch.load(workspace.root / LATEST)["params"]
    models = workspace.root / "experiments/tiny/models"
    for path in (models / "net_g_latest.pth", models / "net_g_6.pth"):
        path.unlink()
    (workspace.root / "experiments/tiny/training_states/6.state").unlink()
    main(["train", "-opt", train, "--auto_resume"])
    torch.testing.assert_close(torch.load(workspace.root / LATEST)["params"], whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ConstructorRaises", "cannot be built from {}: KeyError: 'depths' ("),
        ("AttributeMistake", "blocks.0 (_AttributeMistake) raises AttributeError: "),
        ("GivesDict", "gives a dictionary of 'sr' instead of one image"),
    ],
)
def test_a_network_that_fails_ends_in_one_line(name, line, options, capsys):
    train, _ = options(name)
    with pytest.raises(SystemExit):
        main(["train", "-opt", train])
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert line in last
    assert last.startswith("adabm-basicsr: error: ")


def test_a_size_that_fails_in_validation_ends_in_one_line(options, workspace, capsys):
    train, test = options("OddSizes", "static")
    main(["train", "-opt", train, "--force_yml", "train:total_iter=0"])
    write_images(workspace.root / "val" / "gt", [(62, 58)], seed=50)
    write_images(workspace.root / "val" / "lq", [(31, 29)], seed=50)
    with pytest.raises(SystemExit):
        main(["test", "-opt", test])
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert "OddSizes cannot be run on an image of shape (1, 3, 31, 29): IndexError" in last


def test_an_image_that_is_too_large_is_rejected_before_it_is_run(
    workspace, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "GlobalAttention", GlobalAttention)
    torch.save({"params": GlobalAttention().state_dict()}, "weights.pth")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 9 kB\n")
    monkeypatch.setattr(environment, "MEMORY_INFO", tmp_path / "meminfo")
    # Tests that ran before leave memory to this process.
    (tmp_path / "status").write_text("VmRSS:\t500000 kB\n")
    monkeypatch.setattr(environment, "OWN_STATUS", tmp_path / "status")
    write_images(workspace.root / "large", [(136, 144)])
    validation = {"name": "Large", "type": "SingleImageDataset", "dataroot_lq": "large"}
    validation["io_backend"] = {"type": "disk"}
    test = workspace.test_options(
        network_g={"type": "GlobalAttention"},
        path__pretrain_network_g="weights.pth",
        datasets={"test": validation},
        val__metrics=...,
    )
    with pytest.raises(SystemExit):
        main(["test", "-opt", str(workspace.write(test, "test.yml"))])
    *_, last = capsys.readouterr().err.strip().splitlines()
    line = (
        r"error: val: tile: the network takes about \d\.\d GB for image img_000 of 144x136 "
        r"pixels, and there are 0\.\d GB; set a tile, such as 128$"
    )
    assert re.search(line, last)
    test["val"]["tile"] = 48
    main(["test", "-opt", str(workspace.write(test, "test.yml"))])
