"""Estimates of `adabm-basicsr analyse` beside the self-PSNR that calibration then reaches.

    python tests/benchmarks/analysis.py [--networks EDSR IMDN] [--images 16] [--size 48]

Recipe `fast` without fine-tuning. Both figures are of the same calibration images; a second one is
of patches of Set14, the middle of each image, which nothing was fitted to. EDSR and IMDN are
quantized fully, the perceptual networks in the body alone. Needs ../shared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from image_sets import images_of
from networks import NETWORKS, SHARED, make_example_project_importable, option_file, weights_path
from tabulate import tabulate

from adabm_basicsr import QuantizedNetwork, calibrate, load_checkpoint
from adabm_basicsr.data.calibration_dataset import CalibrationDataset
from adabm_basicsr.quantization.calibration.analysis import analyse_network
from adabm_basicsr.quantization.measures.psnr import self_psnr

BITS = ((8, 8), (4, 8), (6, 6), (4, 4))
FULLY = ("EDSR", "IMDN")
HELD_OUT = SHARED / "data" / "Set14" / "LRbicx4"
HEADERS = ("network", "bits", "estimate (dB)", "reached (dB)", "Set14 patches (dB)")


def network(kind: str, w_bits: int, a_bits: int) -> QuantizedNetwork:
    """A real network, not calibrated yet."""
    from basicsr.archs import build_network

    fully = kind in FULLY
    bits = {"w_bits": w_bits, "a_bits": a_bits}
    opt = option_file(kind, kind, 0, 1, 48, {}, recipe="fast", fully_quantized=fully, **bits)
    net = build_network(opt["network_g"])
    load_checkpoint(net, weights_path(kind))
    return net


def calibration_images(count: int, size: int) -> torch.Tensor:
    """Patches of calibration images, ``(count, 3, size, size)`` in 0..1."""
    opt = option_file("", "EDSR", 0, count, size, {})
    dataset = CalibrationDataset({**opt["datasets"]["train"], "seed": 0})
    [batch] = dataset.calibration_batches(count)
    return batch


def held_out_images(size: int) -> torch.Tensor:
    """The middle of each image of Set14, ``(14, 3, size, size)`` in 0..1."""
    patches = []
    for image in images_of(HELD_OUT):
        height, width = image.shape[2:]
        top = (height - size) // 2
        left = (width - size) // 2
        patches.append(image[..., top : top + size, left : left + size])
    return torch.cat(patches)


def rows(kind: str, images: torch.Tensor, others: torch.Tensor) -> Iterator[list[str]]:
    """Rows of the table for one network."""
    start = time.perf_counter()
    analysis = analyse_network(network(kind, 4, 4), [images])
    print(f"{kind}: analysed in {time.perf_counter() - start:.0f} s", flush=True)
    estimates = {}
    for setting in analysis.settings:
        estimates[setting.w_bits, setting.a_bits] = setting.self_psnr
    for w_bits, a_bits in BITS:
        net = calibrate(network(kind, w_bits, a_bits), [images])
        figures = [estimates[w_bits, a_bits], self_psnr(net, images), self_psnr(net, others)]
        yield [kind, f"W{w_bits}A{a_bits}", *[f"{figure:.1f}" for figure in figures]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--images", type=int, default=16, help="calibration patches")
    parser.add_argument("--size", type=int, default=48, help="side of a patch in LR pixels")
    args = parser.parse_args()
    make_example_project_importable()
    images = calibration_images(args.images, args.size)
    others = held_out_images(args.size)
    table = []
    for kind in args.networks:
        table += list(rows(kind, images, others))
    print(tabulate(table, headers=HEADERS, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
