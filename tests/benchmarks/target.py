"""`target: {self_psnr: 45}` on networks that were trained for looks: what it takes, and what it is.

    python tests/benchmarks/target.py [--networks SRVGGNetCompact RRDBNet] [--wanted 45]
        [--images 16] [--size 48]

Recipe `fast` without fine-tuning, the body alone. Prints what is kept in float, and the
self-PSNR of the pooled squared error over the calibration patches and over whole images of Set14,
with the lowest of a single image there. Needs ../shared.
"""

from __future__ import annotations

import argparse
import time

import torch
from analysis import HELD_OUT, calibration_images
from image_sets import images_of
from networks import NETWORKS, make_example_project_importable, option_file, weights_path
from tabulate import tabulate

from adabm_basicsr import QuantizedNetwork, calibrate, load_checkpoint
from adabm_basicsr.quantization.measures.psnr import psnr_of_errors, self_errors

HEADERS = (
    "network",
    "layers in float",
    "images in float",
    "MACs in float",
    "BitOPs added",
    "size added (MB)",
    "with 8 bits (dB)",
    "calibration patches (dB)",
    "Set14 (dB)",
    "worst of Set14 (dB)",
)


def reach(kind: str, wanted: float, images: torch.Tensor) -> QuantizedNetwork:
    """A real network, calibrated to a self-PSNR."""
    from basicsr.archs import build_network

    target = {"self_psnr": wanted}
    opt = option_file(kind, kind, 0, 1, 48, {}, recipe="fast", target=target)
    net = build_network(opt["network_g"])
    load_checkpoint(net, weights_path(kind))
    return calibrate(net, [images])


def errors_of_set14(net: QuantizedNetwork) -> torch.Tensor:
    """Mean squared error of each whole image."""
    errors = []
    for image in images_of(HELD_OUT):
        errors.append(self_errors(net, image))
    return torch.cat(errors)


def row(kind: str, wanted: float, images: torch.Tensor) -> list[str]:
    """Row of the table for one network."""
    start = time.perf_counter()
    net = reach(kind, wanted, images)
    print(f"{kind}: {time.perf_counter() - start:.0f} s, {net.kept}", flush=True)
    cells = [kind, "0", "0.0 %", "0.0 %", "0.0 %", "0.000", "-"]
    if net.kept is not None:
        cells = [
            kind,
            str(len(net.kept.layers)),
            f"{100 * net.kept.images_share:.1f} %",
            f"{100 * net.kept.macs_share:.1f} %",
            f"{100 * net.kept.bitops_share:.1f} %",
            f"{net.kept.bytes / 1e6:.3f}",
            f"{net.kept.before:.1f}",
        ]
    of_patches = psnr_of_errors(self_errors(net, images).mean())
    of_set14 = errors_of_set14(net)
    figures = [of_patches, psnr_of_errors(of_set14.mean()), psnr_of_errors(of_set14.max())]
    return cells + [f"{float(figure):.1f}" for figure in figures]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ("SRVGGNetCompact", "RRDBNet")
    parser.add_argument("--networks", nargs="+", default=kinds, choices=list(NETWORKS))
    parser.add_argument("--wanted", type=float, default=45.0, help="self-PSNR in dB")
    parser.add_argument("--images", type=int, default=16, help="calibration patches")
    parser.add_argument("--size", type=int, default=48, help="side of a patch in LR pixels")
    args = parser.parse_args()
    make_example_project_importable()
    images = calibration_images(args.images, args.size)
    table = [row(kind, args.wanted, images) for kind in args.networks]
    print(tabulate(table, headers=HEADERS, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
