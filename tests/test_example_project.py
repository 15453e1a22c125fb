"""An in-house project: its own architectures, quantized and tested by option files."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from conftest import write_images

from adabm_basicsr import QuantizationConfig, QuantizedNetwork, load_checkpoint
from adabm_basicsr.archs.adabm_arch import import_modules
from adabm_basicsr.options.yaml_files import load_yaml
from adabm_basicsr.quantization.checkpoint import read_checkpoint
from adabm_basicsr.test import main as run_test
from adabm_basicsr.train import main as run_train

PROJECT = Path(__file__).parent / "example_project"
OPTIONS = sorted((PROJECT / "options").glob("*.yml"))
IMDN = {"type": "IMDN", "num_in_ch": 3, "num_out_ch": 3}
ATTENTION = {"type": "PooledAttentionSR", "num_feat": 8, "num_block": 2}
IMDB_LAYERS = ("c1", "c2", "c3", "c4", "c5", "cca.conv_du.0", "cca.conv_du.2")
OUTER_LAYERS = ("fea_conv", "c.0", "LR_conv", "upsampler.0")
WEIGHTS = "weights/IMDN_x4.pth"
TRAINED = "experiments/AdaBM_PooledAttention_x2_W8A8"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the project as working directory, with its architectures registered.

    They are imported as ``custom_imports`` does it.
    """
    folder = tmp_path / "project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    # custom_imports puts the working directory there.
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_modules(["inhouse.archs"])
    return folder


def small_network(options):
    torch.manual_seed(0)
    return build_network(dict(options)).eval()


def layers(network):
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }


@pytest.fixture
def attention_files(project):
    """What the option files of ``PooledAttentionSR`` name: random weights and tiny images.

    The size of one of them is odd.
    """
    Path("weights").mkdir()
    torch.save({"params": small_network(ATTENTION).state_dict()}, "weights/PooledAttention_x2.pth")
    write_images(project / "datasets/calibration/LRbicx2", [(24, 28)] * 6)
    for name in ("Set5", "Set14"):
        write_images(project / "datasets" / name / "LRbicx2", [(20, 24), (23, 17)], seed=50)
        write_images(project / "datasets" / name / "GTmod12", [(40, 48), (46, 34)], seed=50)


def small_options(opt):
    """``--force_yml`` of a run that takes seconds."""
    small = [f"network_g:network:{key}={value}" for key, value in ATTENTION.items()]
    if "train" in opt:
        small += ["datasets:train:lq_size=16", "train:total_iter=9", "logger:use_tb_logger=false"]
    return [*small, "num_gpu=0"]


def run(command, file):
    command(["-opt", file, "--force_yml", *small_options(load_yaml(file))])


def metrics(folder):
    return json.loads(Path(folder, "metrics.json").read_text())


def test_train_then_test(attention_files):
    run(run_train, "options/train_AdaBM_PooledAttention_x2_W8A8.yml")
    trained = metrics(TRAINED)
    run(run_test, "options/test_AdaBM_PooledAttention_x2_W8A8.yml")
    tested = metrics("results/test_AdaBM_PooledAttention_x2_W8A8")
    assert set(tested) == {"Set5", "Set14"}
    for name in tested:
        assert tested[name] == pytest.approx(trained[name])
        assert set(tested[name]) == {"psnr", "ssim", "fab", "bitops", "weight_bytes"}
        assert 2 <= tested[name]["fab"] <= 8
    assert_close_to_full_precision()


def assert_close_to_full_precision():
    """The trained checkpoint reloads, on an odd-sized image that no run has seen."""
    opt = load_yaml("options/test_AdaBM_PooledAttention_x2_W8A8.yml")
    opt["network_g"]["network"].update(ATTENTION)
    net = load_checkpoint(
        build_network(opt["network_g"]), f"{TRAINED}/models/net_g_latest.pth"
    ).eval()
    full_precision = load_checkpoint(small_network(ATTENTION), "weights/PooledAttention_x2.pth")
    image = torch.rand(1, 3, 21, 18)
    with torch.no_grad():
        output, expected = net(image), full_precision(image)
    assert output.shape == (1, 3, 42, 36)
    assert (output - expected).abs().mean() < 0.01


def test_full_precision_network_is_tested_without_a_wrapper(project):
    small = {"num_feat": 8, "num_modules": 1}
    Path("weights").mkdir()
    torch.save(
        {
            f"module.{key}": value
            for key, value in small_network({**IMDN, **small}).state_dict().items()
        },
        WEIGHTS,
    )
    for name in ("Set5", "Set14"):
        write_images(project / "datasets" / name / "LRbicx4", [(12, 14)] * 2)
        write_images(project / "datasets" / name / "GTmod12", [(48, 56)] * 2)
    overrides = [f"network_g:{key}={value}" for key, value in small.items()]
    run_test(["-opt", "options/test_IMDN_x4.yml", "--force_yml", *overrides, "num_gpu=0"])
    assert metrics("results/test_IMDN_x4")["Set14"]["fab"] == 32


def test_option_files_build_what_they_name(project):
    trains = {
        path.name.replace("train_", "test_"): path
        for path in OPTIONS
        if path.name.startswith("train_")
    }
    assert len(OPTIONS) == 5
    for path in OPTIONS:
        opt = load_yaml(path)
        assert opt["name"] == path.stem.removeprefix("train_")
        network = opt["network_g"]
        if path.name in trains:
            trained = load_yaml(trains[path.name])
            assert network == trained["network_g"]
            assert (
                opt["path"]["pretrain_network_g"]
                == f"experiments/{trained['name']}/models/net_g_latest.pth"
            )
        assert network.pop("custom_imports") == ["inhouse.archs"]
        assert build_network(network) is not None


def test_imdn_has_the_published_layout(project):
    state = small_network(IMDN).state_dict()
    names = [
        *OUTER_LAYERS,
        *(f"IMDB{index}.{layer}" for index in range(1, 7) for layer in IMDB_LAYERS),
    ]
    assert len(names) == 46
    assert set(state) == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    shapes = {
        "fea_conv": (64, 3, 3, 3),
        "IMDB1.c1": (64, 64, 3, 3),
        "IMDB2.c2": (64, 48, 3, 3),
        "IMDB3.c3": (64, 48, 3, 3),
        "IMDB4.c4": (16, 48, 3, 3),
        "IMDB5.c5": (64, 64, 1, 1),
        "IMDB6.cca.conv_du.0": (4, 64, 1, 1),
        "IMDB6.cca.conv_du.2": (64, 4, 1, 1),
        "c.0": (64, 384, 1, 1),
        "LR_conv": (64, 64, 3, 3),
        "upsampler.0": (48, 64, 3, 3),
    }
    assert {name: tuple(state[f"{name}.weight"].shape) for name in shapes} == shapes


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_imdn_takes_its_options(project, upscale):
    network = small_network({**IMDN, "num_feat": 16, "num_modules": 2, "upscale": upscale})
    assert len(layers(network)) == len(OUTER_LAYERS) + 2 * len(IMDB_LAYERS)
    assert network(torch.rand(2, 3, 9, 7)).shape == (2, 3, 9 * upscale, 7 * upscale)
    with pytest.raises(ValueError, match="num_feat must be a multiple of 4"):
        small_network({**IMDN, "num_feat": 18})


def test_imdn_body_is_its_six_modules(project):
    network = small_network({**IMDN, "num_feat": 16})
    net = QuantizedNetwork(
        network, QuantizationConfig(w_bits=8, a_bits=8), torch.rand(1, 3, 16, 16)
    )
    assert net.structure.blocks == [f"IMDB{index}" for index in range(1, 7)]
    assert set(net.plan.layers) == {
        f"IMDB{index}.{layer}" for index in range(1, 7) for layer in IMDB_LAYERS
    }
    assert set(net.plan.skipped) == set(OUTER_LAYERS)


def test_shared_convolutions_are_quantized_once(project):
    network = small_network(ATTENTION)
    net = QuantizedNetwork(
        network, QuantizationConfig(w_bits=8, a_bits=8), torch.rand(1, 3, 16, 16)
    )
    assert net.structure.blocks == ["blocks.0", "blocks.1"]
    kinds = ("near.own", "near.shared", "far.own")
    kinds += tuple(f"attention.{name}" for name in ("squeeze", "reduce", "refine", "expand"))
    assert set(net.plan.layers) == {f"blocks.{index}.{kind}" for index in (0, 1) for kind in kinds}
    block = network.blocks[0]
    assert block.near.shared is block.far.shared is net.layers()["blocks.0.near.shared"]
    with net.full_precision(), torch.no_grad():
        image = torch.rand(1, 3, 13, 18)
        assert torch.allclose(net(image), small_network(ATTENTION)(image), atol=1e-6)


def test_attention_network_computes_in_0_to_255(project):
    network, seen = small_network(ATTENTION), []
    network.first.register_forward_hook(
        lambda module, args, output: seen.append(args[0].max().item())
    )
    output = network(torch.ones(1, 3, 12, 12))
    assert seen == [255]
    assert output.shape == (1, 3, 24, 24)


@pytest.mark.shared
def test_imdn_weights_load_strictly(project, shared):
    state = read_checkpoint(shared / "weights" / "IMDN_x4.pth")
    small_network(IMDN).load_state_dict(state, strict=True)


@pytest.mark.shared
def test_imdn_full_precision_psnr(project, shared):
    (project / "datasets").symlink_to(shared / "data")
    (project / "weights").symlink_to(shared / "weights")
    opt = load_yaml("options/test_IMDN_x4.yml")
    del opt["datasets"]["test_2"]
    opt["num_gpu"], opt["val"]["save_img"] = 0, False
    Path("set5.yml").write_text(yaml.safe_dump(opt))
    run_test(["-opt", "set5.yml"])
    assert metrics("results/test_IMDN_x4")["Set5"]["psnr"] == pytest.approx(32.18, abs=0.01)
