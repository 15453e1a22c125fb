"""Self-PSNR of quantized real networks on Set14, body alone: how close they stay to their full precision.

    python tests/benchmarks/self_psnr.py --out DIR [--networks IMDN SRVGGNetCompact RRDBNet] [--bits 8 6]

Each network is quantized by `adabm-basicsr train` from an option file and nothing else; needs ../shared.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
import yaml
from networks import NETWORKS, SHARED, make_example_project_importable, option_file
from tabulate import tabulate

from adabm_basicsr import load_checkpoint
from adabm_basicsr.data.images import list_images, read_image, to_unit_range
from adabm_basicsr.quantization.measures.psnr import pixel_psnr
from adabm_basicsr.train import main as train

KINDS = ("SRVGGNetCompact", "RRDBNet", "IMDN")


def options(kind: str, bits: int, recipe: str, iterations: int) -> dict:
    """An option file, as a user would write it."""
    name, iterations = f"{kind}_W{bits}A{bits}_{recipe}", {"total_iter": iterations}
    network = {"w_bits": bits, "a_bits": bits, "recipe": recipe}
    return option_file(name, kind, 0, images=64, lq_size=48, iterations=iterations, **network)


@torch.no_grad()
def self_psnr(opt: dict, folder: Path) -> dict[str, float]:
    """Mean self-PSNR in dB, and mean bits, over the images of ``folder``."""
    from basicsr.archs import build_network

    net = build_network(opt["network_g"])
    load_checkpoint(net, Path("experiments") / opt["name"] / "models" / "net_g_latest.pth")
    psnr, bits = [], []
    for path in list_images(folder, "--images"):
        image = torch.from_numpy(to_unit_range(read_image(path))).permute(2, 0, 1).unsqueeze(0)
        output = net(image, details=True)
        with net.full_precision():
            teacher = net(image)
        psnr.append(pixel_psnr(output.output, teacher))
        bits.append(float(output.bits.mean()))
    return {"self_psnr": sum(psnr) / len(psnr), "fab": sum(bits) / len(bits)}


def main() -> None:
    """Quantize, measure, print and write ``self_psnr.json``."""
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
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    make_example_project_importable()
    os.chdir(args.out)
    results = {}
    for kind in args.networks:
        for bits in args.bits:
            opt = options(kind, bits, args.recipe, args.iterations)
            Path("options.yml").write_text(yaml.safe_dump(opt, sort_keys=False))
            train(["-opt", "options.yml"])
            results[f"{kind} W{bits}A{bits}"] = self_psnr(
                opt, SHARED / "data" / "Set14" / "LRbicx4"
            )
    Path("self_psnr.json").write_text(json.dumps(results, indent=2))
    rows = [[name, f"{r['self_psnr']:.2f}", f"{r['fab']:.2f}"] for name, r in results.items()]
    print(
        tabulate(
            rows,
            headers=["network", "self-PSNR (dB)", "FAB"],
            tablefmt="github",
            disable_numparse=True,
        )
    )


if __name__ == "__main__":
    main()
