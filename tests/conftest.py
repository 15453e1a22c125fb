"""What the tests share: a tiny network, images, option files and the folder of shared data."""

import os
import random
import sys
from pathlib import Path

# Of several test processes (pytest -n) each has a thread, and so has what it starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings

import adabm_basicsr  # makes basicsr importable

# The same examples each time: what nobody has seen yet is looked for by `pytest -m fuzz`.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

TESTS = Path(__file__).parent
SHARED = TESTS.parents[1] / "shared"
TINY_EDSR = {
    "type": "EDSR",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 2,
    "upscale": 2,
}


def pytest_collection_modifyitems(items):
    for item in items:
        if TESTS / "quantization" in item.path.parents:
            item.add_marker(pytest.mark.numeric)
        if TESTS / "deployment" / "onnx" in item.path.parents:
            item.add_marker(pytest.mark.runtimes)
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no shared data at {SHARED}"))
        if "gpu" in item.keywords and "ADABM_GPU_TESTS_ON" not in os.environ:
            without = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
            item.add_marker(without)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Each test draws the same numbers, in whatever order and process tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def shared():
    """Folder of research images and weights."""
    return SHARED


def photograph(height, width, seed=0):
    """A smooth random colour image, ``(H, W, 3)`` uint8."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def photographs(count, side):
    """Such images of different seeds as a batch, ``(count, 3, side, side)`` in 0..1."""
    pictures = [photograph(side, side, seed) for seed in range(count)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def write_images(folder, sizes, seed=0):
    """Write one PNG per (height, width); returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (height, width) in enumerate(sizes):
        cv2.imwrite(str(folder / f"img_{index:03d}.png"), photograph(height, width, seed + index))
    return folder


@pytest.fixture
def tiny():
    """A tiny EDSR x2 with random weights that make its output an image."""
    from basicsr.archs import build_network

    torch.manual_seed(0)
    return build_network(TINY_EDSR)


@pytest.fixture(scope="module")
def edsr():
    """The tiny EDSR, calibrated at 4 bits; simple images use fewer."""
    from agreement import quantized

    return quantized(TINY_EDSR, ingredients={"image_bits": [-1, 0]})


@pytest.fixture(scope="module")
def exported(edsr, tmp_path_factory):
    """Its ONNX file."""
    from adabm_basicsr import save_onnx

    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    save_onnx(edsr, path)
    return path


@pytest.fixture
def workspace(tmp_path, monkeypatch, tiny):
    """A working directory with weights, images to calibrate and validate, and their options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["adabm-basicsr"])
    torch.save({"params": tiny.state_dict()}, tmp_path / "tiny.pth")
    write_images(tmp_path / "lr", [(40, 48)] * 8)
    write_images(tmp_path / "val" / "gt", [(48, 64), (56, 48)], seed=50)
    write_images(tmp_path / "val" / "lq", [(24, 32), (28, 24)], seed=50)
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def analysis():
    """The analysis of a network like that of the fixture `tiny`."""
    from analysed import IMAGES, OPTIONS
    from basicsr.archs import build_network

    torch.manual_seed(0)
    return adabm_basicsr.analyse(build_network(TINY_EDSR), IMAGES, **OPTIONS)


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """The working directory of the run; its report is in ``results/tiny_test/report``."""
    from basicsr.archs import build_network

    from adabm_basicsr.commands.report import main

    root = tmp_path_factory.mktemp("reported")
    before = Path.cwd()
    os.chdir(root)
    try:
        torch.manual_seed(0)
        torch.save({"params": build_network(dict(TINY_EDSR)).state_dict()}, "tiny.pth")
        write_images(root / "lr", [(40, 48)] * 8)
        write_images(root / "val" / "gt", [(48, 64), (56, 48)], seed=50)
        write_images(root / "val" / "lq", [(24, 32), (28, 24)], seed=50)
        workspace = Workspace(root)
        workspace.train()
        workspace.test(manual_seed=3)
        main(["results/tiny_test"])
        yield root
    finally:
        os.chdir(before)


@pytest.fixture
def at_run(reported, monkeypatch):
    """Work in the folder of the run."""
    monkeypatch.chdir(reported)
    return reported


class Workspace:
    """Option files for a tiny run below ``root``."""

    def __init__(self, root):
        self.root = root

    def train_options(self, **changes):
        opt = {
            "name": "tiny",
            "model_type": "AdaBMModel",
            "scale": 2,
            "num_gpu": 0,
            "manual_seed": 0,
            "datasets": {
                "train": {
                    "name": "Calibration",
                    "type": "CalibrationDataset",
                    "dataroot_lq": "lr",
                    "lq_size": 24,
                    "num_worker_per_gpu": 0,
                    "batch_size_per_gpu": 2,
                },
            },
            "network_g": self.network_options(),
            "path": {"pretrain_network_g": "tiny.pth"},
            "train": {"total_iter": 12},
            "logger": {"print_freq": 4, "save_checkpoint_freq": 6, "use_tb_logger": False},
        }
        return changed(opt, changes)

    def test_options(self, **changes):
        opt = {
            "name": "tiny_test",
            "model_type": "AdaBMModel",
            "scale": 2,
            "num_gpu": 0,
            "datasets": {
                "test": {
                    "name": "Val",
                    "type": "PairedImageDataset",
                    "dataroot_gt": "val/gt",
                    "dataroot_lq": "val/lq",
                    "io_backend": {"type": "disk"},
                }
            },
            "network_g": self.network_options(),
            "path": {"pretrain_network_g": "experiments/tiny/models/net_g_latest.pth"},
            "val": {
                "save_img": False,
                "suffix": None,
                "metrics": {
                    "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}
                },
            },
        }
        return changed(opt, changes)

    @staticmethod
    def network_options():
        return {
            "type": "AdaBMNetwork",
            "network": dict(TINY_EDSR),
            "w_bits": 4,
            "a_bits": 4,
            "recipe": "paper",
            "fully_quantized": True,
        }

    def write(self, opt, name="options.yml"):
        path = self.root / name
        text = opt
        if not isinstance(opt, str):
            text = yaml.safe_dump(opt, sort_keys=False)
        path.write_text(text)
        return path

    def train(self, *flags, **changes):
        from adabm_basicsr.train import main

        main(["-opt", str(self.write(self.train_options(**changes))), *flags])

    def test(self, *flags, **changes):
        from adabm_basicsr.test import main

        main(["-opt", str(self.write(self.test_options(**changes))), *flags])


def changed(opt, changes):
    """``opt`` with ``a__b=value`` put at ``opt["a"]["b"]``; a value of ``...`` deletes the key."""
    for key, value in changes.items():
        *sections, last = key.split("__")
        target = opt
        for section in sections:
            target = target[section]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    return opt
