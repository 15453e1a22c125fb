"""The real networks that benchmarks measure, by the name of their architecture.

Their options, and their weights in ../shared or, of those that were trained here, in tests/weights.
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
# Networks that were trained for looks: they are quantized in the body alone, and their self-PSNR
# counts.
PERCEPTUAL = ("SRVGGNetCompact", "RRDBNet")
# Small networks of other families, which were trained here.
SMALL_NETWORKS = {
    "SwinIR": {
        "img_size": 32,
        "window_size": 8,
        "depths": [6, 6],
        "embed_dim": 60,
        "num_heads": [6, 6],
        "mlp_ratio": 2,
        "upsampler": "pixelshuffledirect",
        "upscale": 4,
    },
    "RDN": {"num_feat": 32, "num_block": 4, "num_conv": 4, "num_grow_ch": 32, "upscale": 4},
    "SRResNet": {"num_feat": 32, "num_block": 8, "upscale": 4},
}
WEIGHTS = {
    "EDSR": "EDSR_Mx4_f64b16_BSDS400.pth",
    "IMDN": "IMDN_x4.pth",
    "SRVGGNetCompact": "realesr-animevideov3_x4.pth",
    "RRDBNet": "RealESRGAN_x4plus_anime_6B_fp16.pth",
    "SwinIR": "SwinIR_x4_e60d66.pth",
    "RDN": "RDN_x4_f32b4.pth",
    "SRResNet": "SRResNet_x4_f32b8.pth",
}


def arguments(kind: str, scale: int = 4) -> dict[str, Any]:
    """Type and arguments of a network, as an option file has them."""
    found = {**NETWORKS, **SMALL_NETWORKS}[kind]
    name_of_scale = "scale" if kind == "RRDBNet" else "upscale"
    return {"type": kind, **found, name_of_scale: scale}


def weights_path(kind: str) -> Path:
    """The file of a network's x4 weights; those of small networks need not be there."""
    folder = SHARED / "weights"
    if kind in SMALL_NETWORKS:
        folder = ROOT / "tests" / "weights"
    return folder / WEIGHTS[kind]


def calibration_folder(scale: int = 4) -> Path:
    """The LR images to calibrate on."""
    return SHARED / "data" / "calibration" / f"LRbicx{scale}"


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
    scale: int = 4,
    weights: Path | None = None,
    **network: Any,
) -> dict:
    """Options of a training run, as a user would write them.

    Args:
        name: Name of the run.
        kind: Architecture, a key of `NETWORKS` or `SMALL_NETWORKS`.
        seed: ``manual_seed``.
        images: Number of calibration images.
        lq_size: Side of the LR patches in pixels.
        iterations: The section ``train``: ``total_iter``, or nothing for the recipe's own.
        scale: Factor of the network; other ones than 4 need ``weights``.
        weights: File of the network in full precision; the one that benchmarks have by default.
        network: Keys of ``network_g``.
    """
    if weights is None:
        weights = weights_path(kind)
    return {
        "name": name,
        "model_type": "AdaBMModel",
        "scale": scale,
        "num_gpu": "auto",
        "manual_seed": seed,
        "datasets": {
            "train": {
                "name": "Calibration",
                "type": "CalibrationDataset",
                "dataroot_lq": str(calibration_folder(scale)),
                "num_images": images,
                "lq_size": lq_size,
                "batch_size_per_gpu": 2,
                "num_worker_per_gpu": 0,
            }
        },
        "network_g": {
            "type": "AdaBMNetwork",
            "network": arguments(kind, scale),
            "custom_imports": ["inhouse.archs"],
            **network,
        },
        "path": {"pretrain_network_g": str(weights)},
        "train": iterations,
        "logger": {"print_freq": 40, "save_checkpoint_freq": 10000, "use_tb_logger": False},
    }
