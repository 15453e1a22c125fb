"""Self-PSNR of quantized real networks on Set14: how close they stay to their full precision.

    python tests/benchmarks/self_psnr.py --out DIR [--networks IMDN SRVGGNetCompact RRDBNet]
        [--bits 8 6]

The body alone is quantized, by `adabm-basicsr train` from an option file and nothing else; needs
../shared.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
import yaml
from image_sets import images_of
from networks import NETWORKS, SHARED, make_example_project_importable, option_file
from tabulate import tabulate

from adabm_basicsr import load_checkpoint
from adabm_basicsr.quantization.measures.psnr import pixel_psnr
from adabm_basicsr.train import main as train

KINDS = ("SRVGGNetCompact", "RRDBNet", "IMDN")
IMAGES = SHARED / "data" / "Set14" / "LRbicx4"


def options(kind: str, bits: int, recipe: str, iterations: int) -> dict:
    """An option file, as a user would write it."""
    return option_file(
        f"{kind}_W{bits}A{bits}_{recipe}",
        kind,
        seed=0,
        images=64,
        lq_size=48,
        iterations={"total_iter": iterations},
        w_bits=bits,
        a_bits=bits,
        recipe=recipe,
    )


@torch.no_grad()
def self_psnr(opt: dict, folder: Path) -> dict[str, float]:
    """Mean self-PSNR in dB, and mean bits, over the images of ``folder``."""
    from basicsr.archs import build_network

    net = build_network(opt["network_g"])
    load_checkpoint(net, Path("experiments") / opt["name"] / "models" / "net_g_latest.pth")
    psnr = []
    bits = []
    for image in images_of(folder):
        output = net(image)
        with net.full_precision():
            teacher = net(image)
        psnr.append(pixel_psnr(output, teacher))
        bits.append(float(net.bits_for(image)))
    return {"self_psnr": sum(psnr) / len(psnr), "fab": sum(bits) / len(bits)}


def make_table(results: dict[str, dict[str, float]]) -> str:
    """A row for each network and bits."""
    rows = []
    for name, found in results.items():
        rows.append([name, f"{found['self_psnr']:.2f}", f"{found['fab']:.2f}"])
    headers = ["network", "self-PSNR (dB)", "FAB"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for experiments and results"
    )
    parser.add_argument("--networks", nargs="+", default=KINDS, choices=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6])
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--iterations", type=int, default=64, help="of fine-tuning")
    return parser.parse_args()


def main() -> None:
    """Quantize, measure, print and write ``self_psnr.json``."""
    args = read_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    make_example_project_importable()
    os.chdir(args.out)
    results = {}
    for kind in args.networks:
        for bits in args.bits:
            opt = options(kind, bits, args.recipe, args.iterations)
            Path("options.yml").write_text(yaml.safe_dump(opt, sort_keys=False))
            train(["-opt", "options.yml"])
            results[f"{kind} W{bits}A{bits}"] = self_psnr(opt, IMAGES)
    Path("self_psnr.json").write_text(json.dumps(results, indent=2))
    print(make_table(results))


if __name__ == "__main__":
    main()
