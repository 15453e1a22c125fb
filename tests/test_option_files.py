"""The shipped option files: current, valid, and fit to run."""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_images

from adabm_basicsr.options import load_yaml

OPTIONS = Path(__file__).parents[1] / "options"
TRAIN = sorted((OPTIONS / "train").rglob("train_AdaBM_*.yml"))
TEST = sorted((OPTIONS / "test").rglob("*.yml"))


def generator():
    spec = importlib.util.spec_from_file_location("generate", OPTIONS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_current():
    files = generator().render_all()
    assert {path: path.read_text() for path in files} == files
    assert set(files) == set(TRAIN + TEST)


def make_files(root, opt):
    """What the option file names, in small: weights, calibration images, validation sets."""
    from basicsr.archs import build_network

    network = opt["network_g"]["network"]
    network.update(num_feat=8, num_block=1)
    path = root / opt["path"]["pretrain_network_g"]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params": build_network(dict(network)).state_dict()}, path)
    scale = network["upscale"]
    for dataset in opt["datasets"].values():
        write_images(root / dataset["dataroot_lq"], [(24, 24)] * 4)
        if "dataroot_gt" in dataset:
            write_images(root / dataset["dataroot_gt"], [(24 * scale, 24 * scale)] * 4)


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_train_and_test_files_run_together(path, tmp_path, monkeypatch):
    from adabm_basicsr.test import main as test
    from adabm_basicsr.train import main as train

    monkeypatch.chdir(tmp_path)
    opt = load_yaml(path)
    make_files(tmp_path, opt)
    opt["num_gpu"], opt["train"]["total_iter"], opt["datasets"]["train"]["lq_size"] = 0, 6, 16
    Path("train.yml").write_text(yaml.safe_dump(opt))
    train(["-opt", "train.yml"])
    test_file = OPTIONS / "test" / "EDSR" / path.name.replace("train_", "test_")
    small = ["network_g:network:num_feat=8", "network_g:network:num_block=1", "num_gpu=0"]
    test(["-opt", str(test_file), "--force_yml", *small])
    assert Path("results", f"test_{opt['name']}", "visualization", "Set14").is_dir()


def test_full_precision_training_file_is_basicsrs_own(tmp_path, monkeypatch):
    from adabm_basicsr.train import main as train

    monkeypatch.chdir(tmp_path)
    opt = load_yaml(OPTIONS / "train" / "EDSR" / "train_EDSR_Mx4_BSDS400.yml")
    assert opt["model_type"] == "SRModel" and opt["network_g"]["type"] == "EDSR"
    opt["network_g"].update(num_feat=8, num_block=1)
    opt["num_gpu"], opt["train"]["total_iter"], opt["datasets"]["train"]["gt_size"] = 0, 2, 32
    opt["datasets"]["train"].update(batch_size_per_gpu=2, num_worker_per_gpu=0, dataset_enlarge_ratio=1)
    opt["logger"]["use_tb_logger"] = False
    for dataset in opt["datasets"].values():
        write_images(tmp_path / dataset["dataroot_lq"], [(24, 24)] * 2)
        write_images(tmp_path / dataset["dataroot_gt"], [(96, 96)] * 2)
    Path("train.yml").write_text(yaml.safe_dump(opt))
    train(["-opt", "train.yml"])
    assert Path("experiments", opt["name"], "models", "net_g_latest.pth").is_file()
