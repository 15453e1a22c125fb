"""The accuracy benchmark's runs are valid options, and are measured on the sets that there are."""

import importlib
import itertools
import json
import sys
from pathlib import Path

import accuracy
import networks
import pytest
import torch
from conftest import TINY_EDSR, write_images
from image_sets import find_sets

from adabm_basicsr import calibrate
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork

WEIGHTS = Path("weights.pth")
KINDS = [*networks.NETWORKS, *networks.SMALL_NETWORKS]


def setting(kind, variant="best", bits="W4A4", scale=4, scope="full"):
    return accuracy.Setting(kind, scale, scope, bits, variant, seed=1)


@pytest.mark.parametrize("variant", accuracy.VARIANTS)
def test_every_variant_builds(variant):
    accuracy.make_example_project_importable()
    network = accuracy.options(setting("IMDN", variant), WEIGHTS)["network_g"]
    network.pop("type")
    net = AdaBMNetwork(**network)
    assert net.config.arithmetic.integer is not (variant == "paper" or "published" in variant)


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_has_the_scale_that_is_asked_for(kind):
    from basicsr.archs import build_network

    accuracy.make_example_project_importable()
    importlib.import_module("inhouse.archs")
    net = build_network(networks.arguments(kind, scale=2)).eval()
    assert net(torch.rand(1, 3, 16, 8)).shape == (1, 3, 32, 16)


def test_transformers_are_quantized_as_published():
    network = accuracy.options(setting("SwinIR", scope="body"), WEIGHTS)["network_g"]
    assert network["attention_products"]
    assert not network["fully_quantized"]


def test_names_of_runs_differ():
    cases = list(itertools.product(KINDS, accuracy.VARIANTS, ("W4A4", "W4A8"), (2, 4)))
    names = {accuracy.options(setting(*case), WEIGHTS)["name"] for case in cases}
    assert len(names) == len(cases)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the benchmark on a tiny EDSR x2 with tiny images; returns what it keeps."""
    from basicsr.archs import build_network

    arguments = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1}
    monkeypatch.setitem(networks.NETWORKS, "EDSR", arguments)
    monkeypatch.setattr(networks, "SHARED", tmp_path)
    monkeypatch.chdir(tmp_path)
    write_images(networks.calibration_folder(2), [(64, 72)] * 4)
    net = build_network({"type": "EDSR", **arguments, "upscale": 2})
    torch.save({"params": net.state_dict()}, "own.pth")

    def run_with(*flags):
        command = ["accuracy.py", "--out", str(tmp_path / "out"), "--sets", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [*command, *flags])
        accuracy.main()
        return json.loads((tmp_path / "out" / "accuracy.json").read_text())

    return run_with


def test_own_weights_are_measured_on_the_sets_that_there_are(run, tmp_path, capsys):
    write_images(tmp_path / "Set14" / "LRbicx2", [(24, 32)])
    write_images(tmp_path / "Set14" / "GTmod12", [(48, 64)])
    choice = ["--networks", "EDSR", "--scale", "2", "--weights", "own.pth"]
    choice += ["--bits", "W2A2", "--variants", "paper", "static, omse", "--seeds", "1"]
    runs = run(*choice)
    assert list(runs) == ["EDSR x2, full, W2A2, static, omse, seed 1"]
    [result] = runs.values()
    assert result["weights"] == "own.pth"
    assert list(result["sets"]) == ["Set14"]
    assert 0 < result["sets"]["Set14"]["ssim"] < 1
    shown = capsys.readouterr().out
    assert f"Urban100 is left out: {tmp_path / 'Urban100'} has neither LRbicx2 nor" in shown
    assert "paper at W2A2 is left out: the recipe takes no 2 bits" in shown
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 1000


def test_images_in_full_precision_are_measured_as_such(tmp_path):
    write_images(tmp_path / "Set5" / "LRbicx4", [(24, 24)] * 3)
    write_images(tmp_path / "Set5" / "GTmod12", [(96, 96)] * 3)
    [image_set] = find_sets(tmp_path, 4)
    net = AdaBMNetwork(network=dict(TINY_EDSR, upscale=4), recipe="static")
    calibrate(net, image_set.images())
    quantized = accuracy.measure(net, image_set)
    assert quantized["fab"] < 32
    net.keep_images_in_float(0.0)
    in_full = accuracy.measure(net, image_set)
    assert in_full["fab"] == 32
    assert in_full["psnr"] == in_full["full_precision_psnr"]
    assert in_full["bitops"] > quantized["bitops"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--bits", "4"], "--bits: '4' names no bits; valid: W8A8, W4A8, W4A4, ..."),
        (["--scale", "2"], "--scale 2: needs --weights, as the weights at hand are of x4"),
        (["--weights", "own.pth"], "--weights: --networks must name the one network"),
        (["--networks", "IMDN", "--weights", "no.pth"], "--weights: there is no file no.pth"),
        (["--networks", "RDN"], "--networks RDN: there are no weights"),
        (
            ["--networks", "EDSR", "--scale", "2", "--weights", "own.pth"],
            "holds none of Set5, Set14, B100, Urban100 at x2",
        ),
    ],
)
def test_a_mistake_is_rejected_in_a_line(flags, said, run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        run(*flags)
    assert said in capsys.readouterr().err


def test_networks_without_weights_are_left_out(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(networks, "ROOT", tmp_path)
    (tmp_path / "tests" / "weights").mkdir(parents=True)
    networks.weights_path("RDN").touch()
    assert list(accuracy.find_weights(None, 4, None)) == ["RDN"]
    assert "SwinIR is left out: there are no weights" in capsys.readouterr().out
