"""The real networks that benchmarks measure, by the name of their architecture.

Their options, and their weights in ../shared.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
EXAMPLE_PROJECT = ROOT / "tests" / "example_project"
SR = {"num_in_ch": 3, "num_out_ch": 3}
NETWORKS = {
    "EDSR": {**SR, "num_feat": 64, "num_block": 16, "upscale": 4},
    "IMDN": SR,
    "SRVGGNetCompact": {**SR, "num_feat": 64, "num_conv": 16, "upscale": 4, "act_type": "prelu"},
    "RRDBNet": {**SR, "num_feat": 64, "num_block": 6, "num_grow_ch": 32},
}
WEIGHTS = {
    "EDSR": "EDSR_Mx4_f64b16_BSDS400.pth",
    "IMDN": "IMDN_x4.pth",
    "SRVGGNetCompact": "realesr-animevideov3_x4.pth",
    "RRDBNet": "RealESRGAN_x4plus_anime_6B_fp16.pth",
}


def make_example_project_importable() -> None:
    """IMDN is an in-house network: an option file names it under ``custom_imports``."""
    sys.path.insert(0, str(EXAMPLE_PROJECT))


def training_environment() -> dict[str, str]:
    """Variables for a command that trains such a network in a process of its own."""
    path = os.pathsep.join([str(ROOT), str(EXAMPLE_PROJECT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def parse_bits(name: str) -> tuple[int, int]:
    """Bits of weights and of activations of a name such as "W4A8"."""
    w_bits, a_bits = name.removeprefix("W").split("A")
    return int(w_bits), int(a_bits)


def bits_argument(given: str) -> str:
    """A value of ``--bits``, checked."""
    if not re.fullmatch(r"W\d+A\d+", given):
        raise argparse.ArgumentTypeError(f"{given!r} names no bits; valid: W8A8, W4A8, W4A4, ...")
    return given


def option_file(
    name: str,
    kind: str,
    seed: int,
    images: int,
    lq_size: int,
    iterations: dict[str, int],
    **network: Any,
) -> dict:
    """Options of a training run, as a user would write them.

    Args:
        name: Name of the run.
        kind: Architecture, a key of `NETWORKS`.
        seed: ``manual_seed``.
        images: Number of calibration images.
        lq_size: Side of the LR patches in pixels.
        iterations: The section ``train``: ``total_iter``, or nothing for the recipe's own.
        network: Keys of ``network_g``.
    """
    return {
        "name": name,
        "model_type": "AdaBMModel",
        "scale": 4,
        "num_gpu": "auto",
        "manual_seed": seed,
        "datasets": {
            "train": {
                "name": "Calibration",
                "type": "CalibrationDataset",
                "dataroot_lq": str(SHARED / "data" / "calibration" / "LRbicx4"),
                "num_images": images,
                "lq_size": lq_size,
                "batch_size_per_gpu": 2,
                "num_worker_per_gpu": 0,
            }
        },
        "network_g": {
            "type": "AdaBMNetwork",
            "network": {"type": kind, **NETWORKS[kind]},
            "custom_imports": ["inhouse.archs"],
            **network,
        },
        "path": {"pretrain_network_g": str(SHARED / "weights" / WEIGHTS[kind])},
        "train": iterations,
        "logger": {"print_freq": 40, "save_checkpoint_freq": 10000, "use_tb_logger": False},
    }
