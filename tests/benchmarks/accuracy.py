"""Accuracy of the recipes on Set5 and Set14: PSNR, SSIM and self-PSNR, with bits, BitOPs and cost.

    python tests/benchmarks/accuracy.py --out DIR [--networks EDSR IMDN] [--bits W4A4 W4A8]
        [--variants paper best] [--seeds 1]

Each run goes through `adabm-basicsr train` with an option file; runs that are in
``DIR/accuracy.json`` already aren't repeated. Prints a table, and writes ``accuracy.json``,
``accuracy.md`` and ``accuracy.png`` (PSNR against BitOPs). Needs ../shared.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import yaml
from kept_runs import run_missing
from networks import (
    NETWORKS,
    SHARED,
    bits_argument,
    make_example_project_importable,
    option_file,
    parse_bits,
)
from paper_on_edsr import timed_run
from tabulate import tabulate

from adabm_basicsr import load_checkpoint
from adabm_basicsr.data.images import list_images, read_image, to_unit_range
from adabm_basicsr.quantization.measures.cost import CostMeter, size_bytes
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

SCALE = 4
SETS = ("Set5", "Set14")
# Networks that were trained for looks: they are quantized in the body alone, and their self-PSNR
# counts.
PERCEPTUAL = ("SRVGGNetCompact", "RRDBNet")
OBSERVERS = ("minmax", "percentile", "omse")
VARIANTS = {
    "paper": {"recipe": "paper"},
    "fast": {"recipe": "fast"},
    "best": {"recipe": "best"},
    "best, fixed bits": {"recipe": "best", "ingredients": {"adaptive": False}},
    "best, no image levels": {
        "recipe": "best",
        "ingredients": {"image_bits": [0, 0], "image_ranges": False},
    },
    "best, not allocated": {
        "recipe": "best",
        "ingredients": {"adaptive": False, "allocate": False},
    },
    "best, calibration alone": {"recipe": "best", "total_iter": 0},
}
for observer in OBSERVERS:
    VARIANTS[f"static, {observer}"] = {"recipe": "static", "observer": observer}
for observer in OBSERVERS:
    VARIANTS[f"static, {observer}, published quantizers"] = {
        "recipe": "static",
        "observer": observer,
        "ingredients": {"integer": False},
    }
MAIN_VARIANTS = ("static, omse", "paper", "fast", "best")


def options(kind: str, bits: str, variant: str, seed: int) -> dict:
    """An option file, as a user would write it."""
    own = dict(VARIANTS[variant])
    iterations = {}
    if "total_iter" in own:
        iterations["total_iter"] = own.pop("total_iter")
    w_bits, a_bits = parse_bits(bits)
    return option_file(
        run_name(kind, bits, variant, seed).replace(", ", "_").replace(" ", "_"),
        kind,
        seed,
        images=80,
        lq_size=64,
        iterations=iterations,
        w_bits=w_bits,
        a_bits=a_bits,
        fully_quantized=kind not in PERCEPTUAL,
        **own,
    )


def run_name(kind: str, bits: str, variant: str, seed: int) -> str:
    """Key of a run in the results."""
    return f"{kind}, {bits}, {variant}, seed {seed}"


def run(kind: str, bits: str, variant: str, seed: int) -> dict:
    """Quantize and measure once."""
    from basicsr.archs import build_network

    opt = options(kind, bits, variant, seed)
    Path("options.yml").write_text(yaml.safe_dump(opt, sort_keys=False))
    cost = timed_run(["-opt", "options.yml"])

    net = build_network(opt["network_g"])
    load_checkpoint(net, Path("experiments") / opt["name"] / "models" / "net_g_latest.pth")
    sets = {}
    for name in SETS:
        sets[name] = measure(net, name)
    bits_of_images = [float(net.bits_for(image)) for _, image in images_of("calibration")]
    sets["calibration"] = {"fab": mean(bits_of_images)}

    return {
        "network": kind,
        "bits": bits,
        "variant": variant,
        "seed": seed,
        "bytes": size_bytes(net),
        **cost,
        "sets": sets,
    }


def images_of(name: str) -> Iterator[tuple[Path, torch.Tensor]]:
    """Path and pixels, ``(1, 3, H, W)`` in 0..1, of each LR image of a set."""
    for path in list_images(SHARED / "data" / name / f"LRbicx{SCALE}", "--images"):
        pixels = torch.from_numpy(to_unit_range(read_image(path)))
        yield path, pixels.permute(2, 0, 1).unsqueeze(0)


@torch.no_grad()
def measure(net: torch.nn.Module, name: str) -> dict[str, float]:
    """Means over the images of a set."""
    from basicsr.metrics import calculate_psnr, calculate_ssim

    rows = []
    for path, image in images_of(name):
        with CostMeter(net) as meter:
            quantized = net(image, details=True)
            cost = meter.read()
        with net.full_precision():
            teacher = net(image)
        row = {
            "fab": float(quantized.bits.mean()),
            "bitops": cost.bitops,
            "self_psnr": pixel_psnr(quantized.output, teacher),
        }
        gt = read_ground_truth(name, path)
        for prefix, result in (("", quantized.output), ("full_precision_", teacher)):
            made = to_bgr(result)
            row[f"{prefix}psnr"] = calculate_psnr(made, gt, crop_border=SCALE, test_y_channel=True)
            row[f"{prefix}ssim"] = calculate_ssim(made, gt, crop_border=SCALE, test_y_channel=True)
        rows.append(row)
    return means(rows)


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the rows, which have the same keys."""
    return {key: mean(row[key] for row in rows) for key in rows[0]}


def read_ground_truth(name: str, path: Path) -> np.ndarray:
    """The HR image that belongs to the LR image ``path`` of a set: ``(H, W, 3)`` uint8, BGR."""
    return read_image(SHARED / "data" / name / "GTmod12" / path.name)[..., ::-1]


def to_bgr(image: torch.Tensor) -> np.ndarray:
    """An image ``(1, 3, H, W)`` in 0..1 as BasicSR's metrics take it: ``(H, W, 3)`` in 0..255."""
    pixels = (image.clamp(0, 1) * 255).round()
    return pixels[0].permute(1, 2, 0).flip(2).numpy()


def make_table(runs: dict[str, dict]) -> str:
    """A line for each network, bits and variant: means over the seeds, and spread of PSNR losses.

    The spread is the standard deviation.
    """
    groups: dict[tuple, list[dict]] = {}
    for result in runs.values():
        group = (result["network"], result["bits"], result["variant"])
        groups.setdefault(group, []).append(result)

    rows = []
    for (network, bits, variant), seeds in groups.items():
        row = {"network": network, "bits": bits, "variant": variant}
        row["seeds"] = str(len(seeds))
        for name in SETS:
            row |= _cells_of_set(name, [result["sets"][name] for result in seeds])
        fab = mean(result["sets"]["calibration"]["fab"] for result in seeds)
        row["calibration FAB"] = f"{fab:.3f}"
        row["size (MB)"] = f"{mean(result['bytes'] for result in seeds) / 1e6:.3f}"
        row["forward units"] = f"{mean(result['units'] for result in seeds):.0f}"
        rows.append(row)
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def _cells_of_set(name: str, figures: list[dict]) -> dict[str, str]:
    """Cells of one set; ``figures`` has those of each seed."""
    losses = [found["full_precision_psnr"] - found["psnr"] for found in figures]
    loss = f"{mean(losses):.3f}"
    if len(losses) > 1:
        loss += f" ± {stdev(losses):.3f}"
    average = means(figures)
    return {
        f"{name} loss (dB)": loss,
        f"{name} SSIM": f"{average['ssim']:.4f}",
        f"{name} self-PSNR": f"{average['self_psnr']:.2f}",
        f"{name} FAB": f"{average['fab']:.2f}",
    }


def plot(runs: dict[str, dict], path: Path) -> None:
    """PSNR against BitOPs on Set14, a panel for each network."""
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(result["network"] for result in runs.values()))
    figure, panels = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 4), squeeze=False)
    for kind, panel in zip(kinds, panels[0], strict=True):
        metric = "self_psnr" if kind in PERCEPTUAL else "psnr"
        lines: dict[str, list[dict]] = {}
        for result in runs.values():
            if result["network"] == kind:
                lines.setdefault(result["variant"], []).append(result["sets"]["Set14"])
        for variant, points in lines.items():
            points.sort(key=lambda point: point["bitops"])
            x = [point["bitops"] / 1e12 for point in points]
            y = [point[metric] for point in points]
            panel.plot(x, y, "o-", label=variant, alpha=0.8)
        panel.set_title(f"{kind} x4, Set14")
        panel.set_xlabel("TeraBitOPs per image")
        panel.set_ylabel(f"{metric.replace('_', '-')} (dB)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for experiments and results"
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument(
        "--bits",
        nargs="+",
        type=bits_argument,
        default=["W4A4"],
        help="such as W8A8 W4A8 W4A4",
    )
    parser.add_argument(
        "--variants", nargs="+", default=MAIN_VARIANTS, choices=list(VARIANTS), metavar="VARIANT"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    return parser.parse_args()


def main() -> None:
    """Run what is missing, print and write."""
    args = read_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    make_example_project_importable()
    os.chdir(args.out)
    asked = {}
    for seed, kind, bits, variant in itertools.product(
        args.seeds, args.networks, args.bits, args.variants
    ):
        asked[run_name(kind, bits, variant, seed)] = partial(run, kind, bits, variant, seed)
    runs = run_missing(Path("accuracy.json"), asked)
    table = make_table(runs)
    Path("accuracy.md").write_text(table + "\n")
    plot(runs, Path("accuracy.png"))
    print(table)


if __name__ == "__main__":
    main()
