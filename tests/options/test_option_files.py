"""The shipped option files: current, valid, and fit to run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_images

from adabm_basicsr.options.reading import load_yaml

OPTIONS = Path(__file__).parents[2] / "options"
TRAIN = sorted((OPTIONS / "train").rglob("train_AdaBM_*.yml"))
TEST = sorted((OPTIONS / "test").rglob("*.yml"))
BLOCKS = {"num_feat": 8, "num_block": 1}
SMALL = {
    "EDSR": BLOCKS,
    "MSRResNet": BLOCKS,
    "SRResNet": BLOCKS,
    "RCAN": {**BLOCKS, "num_group": 2, "squeeze_factor": 4},
    "RDN": {**BLOCKS, "num_conv": 2, "num_grow_ch": 8},
    "RRDBNet": {**BLOCKS, "num_grow_ch": 8},
    "SRVGGNetCompact": {"num_feat": 8, "num_conv": 3},
    "ECBSR": {"num_block": 2, "num_channel": 8},
    "SwinIR": {"depths": [1, 1], "embed_dim": 12, "num_heads": [2, 2]},
}  # what replaces a network's options in a run that takes seconds


def generator():
    spec = importlib.util.spec_from_file_location("generate", OPTIONS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_current():
    files = generator().render_all()
    assert {path: path.read_text() for path in files} == files
    assert set(files) == set(TRAIN + TEST)


def network_type(path):
    return load_yaml(path)["network_g"]["network"]["type"]


def test_every_supported_network_has_files():
    assert {network_type(path) for path in TRAIN} == set(SMALL)


def matching_test(path):
    """The test file that belongs to a training file."""
    return OPTIONS / "test" / path.parent.name / path.name.replace("train_", "test_")


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_training_and_test_file_belong_together(path):
    trained, tested = load_yaml(path), load_yaml(matching_test(path))
    assert path.stem == f"train_{trained['name']}" and tested["name"] == f"test_{trained['name']}"
    assert tested["network_g"] == trained["network_g"]
    assert (
        tested["path"]["pretrain_network_g"]
        == f"experiments/{trained['name']}/models/net_g_latest.pth"
    )
    for text in (path, matching_test(path)):
        assert f"-opt {text.relative_to(OPTIONS.parent)}\n" in text.read_text()  # its own command


def make_files(root, opt):
    """What the option file names, in small: random weights, calibration images, validation sets."""
    from basicsr.archs import build_network

    path = root / opt["path"]["pretrain_network_g"]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save({"params": build_network(dict(opt["network_g"]["network"])).state_dict()}, path)
    for dataset in opt["datasets"].values():
        write_images(root / dataset["dataroot_lq"], [(16, 18)] * 2)
        if "dataroot_gt" in dataset:
            write_images(
                root / dataset["dataroot_gt"], [(16 * opt["scale"], 18 * opt["scale"])] * 2
            )


def run_pair(path, root, smaller):
    """Train and test by the files of one name, for three iterations on tiny images."""
    from adabm_basicsr.test import main as test
    from adabm_basicsr.train import main as train

    opt = load_yaml(path)
    opt["network_g"]["network"].update(smaller)
    make_files(root, opt)
    opt["num_gpu"], opt["train"]["total_iter"], opt["datasets"]["train"]["lq_size"] = 0, 3, 16
    Path("train.yml").write_text(yaml.safe_dump(opt))
    train(["-opt", "train.yml"])
    overrides = [f"network_g:network:{key}={value}" for key, value in smaller.items()]
    test(["-opt", str(matching_test(path)), "--force_yml", *overrides, "num_gpu=0"])
    metrics = json.loads(Path("results", f"test_{opt['name']}", "metrics.json").read_text())
    assert set(metrics) == {"Set5", "Set14"}
    assert all(values["psnr"] > 0 and 2 <= values["fab"] <= 8 for values in metrics.values())
    assert Path("results", f"test_{opt['name']}", "visualization", "Set14").is_dir()


# By default one bit-width of each network and scale; `-m slow` runs the others.
SMALL_RUNS = [
    pytest.param(path, marks=[pytest.mark.slow] * ("W4A4" not in path.stem), id=path.stem)
    for path in TRAIN
]


@pytest.mark.parametrize("path", SMALL_RUNS)
def test_train_and_test_files_run_together(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_pair(path, tmp_path, SMALL[network_type(path)])


IN_FULL = [path for path in TRAIN if re.search(r"x4.*_W4A4$", path.stem)]  # each network once


@pytest.mark.slow
@pytest.mark.parametrize("path", IN_FULL, ids=lambda path: path.stem)
def test_networks_run_in_their_own_size(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_pair(path, tmp_path, {})


def test_full_precision_training_file_is_basicsrs_own(tmp_path, monkeypatch):
    from adabm_basicsr.train import main as train

    monkeypatch.chdir(tmp_path)
    opt = load_yaml(OPTIONS / "train" / "EDSR" / "train_EDSR_Mx4_BSDS400.yml")
    assert opt["model_type"] == "SRModel" and opt["network_g"]["type"] == "EDSR"
    opt["network_g"].update(num_feat=8, num_block=1)
    opt["num_gpu"], opt["train"]["total_iter"], opt["datasets"]["train"]["gt_size"] = 0, 2, 32
    opt["datasets"]["train"].update(
        batch_size_per_gpu=2, num_worker_per_gpu=0, dataset_enlarge_ratio=1
    )
    opt["logger"]["use_tb_logger"] = False
    for dataset in opt["datasets"].values():
        write_images(tmp_path / dataset["dataroot_lq"], [(24, 24)] * 2)
        write_images(tmp_path / dataset["dataroot_gt"], [(96, 96)] * 2)
    Path("train.yml").write_text(yaml.safe_dump(opt))
    train(["-opt", "train.yml"])
    assert Path("experiments", opt["name"], "models", "net_g_latest.pth").is_file()
