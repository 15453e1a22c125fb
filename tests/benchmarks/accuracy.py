"""Accuracy of the recipes: PSNR, SSIM and self-PSNR on Set5 and Set14, with bits, BitOPs, size and cost.

    python tests/benchmarks/accuracy.py --out DIR [--networks EDSR IMDN] [--bits 4] [--variants paper best] [--seeds 1]

Each run goes through `adabm-basicsr train` with an option file; runs that are in ``DIR/accuracy.json`` already aren't
repeated. Prints tables, and writes ``accuracy.json``, ``accuracy.md`` and ``accuracy.png`` (PSNR against BitOPs). Needs
../shared.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import torch
import yaml
from networks import NETWORKS, SHARED, make_example_project_importable, option_file
from paper_on_edsr import timed_run
from tabulate import tabulate

from adabm_basicsr import load_checkpoint
from adabm_basicsr.data.images import list_images, read_image, to_unit_range
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.measures.cost import CostMeter, size_bytes
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

SCALE = 4
SETS = ("Set5", "Set14")
PERCEPTUAL = (
    "SRVGGNetCompact",
    "RRDBNet",
)  # quantized in the body alone, as the issue of their fidelity asks
OBSERVERS = ("minmax", "percentile", "omse")
PUBLISHED_QUANTIZERS = {"ingredients": {"integer": False}}
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
    **{f"static, {name}": {"recipe": "static", "observer": name} for name in OBSERVERS},
    **{
        f"static, {name}, published quantizers": {
            "recipe": "static",
            "observer": name,
            **PUBLISHED_QUANTIZERS,
        }
        for name in OBSERVERS
    },
}
MAIN_VARIANTS = ("static, omse", "paper", "fast", "best")


def options(kind: str, bits: int, variant: str, seed: int) -> dict:
    """An option file, as a user would write it."""
    own = dict(VARIANTS[variant])
    iterations = {"total_iter": own.pop("total_iter")} if "total_iter" in own else {}
    name = run_name(kind, bits, variant, seed).replace(", ", "_").replace(" ", "_")
    network = {"w_bits": bits, "a_bits": bits, "fully_quantized": kind not in PERCEPTUAL, **own}
    return option_file(name, kind, seed, images=80, lq_size=64, iterations=iterations, **network)


def run_name(kind: str, bits: int, variant: str, seed: int) -> str:
    """Key of a run in the results."""
    return f"{kind}, W{bits}A{bits}, {variant}, seed {seed}"


def run(kind: str, bits: int, variant: str, seed: int) -> dict:
    """Quantize and measure once."""
    from basicsr.archs import build_network

    opt = options(kind, bits, variant, seed)
    Path("options.yml").write_text(yaml.safe_dump(opt, sort_keys=False))
    cost = timed_run(["-opt", "options.yml"])
    net = build_network(opt["network_g"])
    load_checkpoint(net, Path("experiments") / opt["name"] / "models" / "net_g_latest.pth")
    sets = {name: measure(net, name) for name in SETS}
    sets["calibration"] = {
        "fab": mean(float(net.bits_for(image)) for _, image in images_of("calibration"))
    }
    figures = {
        "network": kind,
        "bits": bits,
        "variant": variant,
        "seed": seed,
        "bytes": size_bytes(net),
        **cost,
    }
    return {**figures, "sets": sets}


def images_of(name: str) -> Iterator[tuple[Path, torch.Tensor]]:
    """Path and pixels, ``(1, 3, H, W)`` in 0..1, of each LR image of a set."""
    for path in list_images(SHARED / "data" / name / f"LRbicx{SCALE}", "--images"):
        yield path, torch.from_numpy(to_unit_range(read_image(path))).permute(2, 0, 1).unsqueeze(0)


@torch.no_grad()
def measure(net: torch.nn.Module, name: str) -> dict[str, float]:
    """Means over the images of a set."""
    from basicsr.metrics import calculate_psnr, calculate_ssim

    rows = []
    for path, image in images_of(name):
        with CostMeter(net) as meter:
            output = net(image, details=True)
            row = {"fab": float(output.bits.mean()), "bitops": meter.read().bitops}
        with net.full_precision():
            teacher = net(image)
        row["self_psnr"] = pixel_psnr(output.output, teacher)
        gt = read_image(SHARED / "data" / name / "GTmod12" / path.name)[..., ::-1]
        for prefix, result in (("", output.output), ("full_precision_", teacher)):
            made = pixels(result)[0].permute(1, 2, 0).flip(2).numpy()
            row[f"{prefix}psnr"] = calculate_psnr(made, gt, crop_border=SCALE, test_y_channel=True)
            row[f"{prefix}ssim"] = calculate_ssim(made, gt, crop_border=SCALE, test_y_channel=True)
        rows.append(row)
    return {key: mean(row[key] for row in rows) for key in rows[0]}


def pixels(image: torch.Tensor) -> torch.Tensor:
    """An image in 0..1 as whole numbers in 0..255."""
    return (image.clamp(0, 1) * 255).round()


def make_table(runs: dict[str, dict]) -> str:
    """A line for each network, bits and variant: means over the seeds, and the deviation of PSNR losses."""
    rows = []
    groups = dict.fromkeys((r["network"], r["bits"], r["variant"]) for r in runs.values())
    for group in groups:
        seeds = [r for r in runs.values() if (r["network"], r["bits"], r["variant"]) == group]
        cells = [group[0], f"W{group[1]}A{group[1]}", group[2], str(len(seeds))]
        for name in SETS:
            figures = [r["sets"][name] for r in seeds]
            losses = [f["full_precision_psnr"] - f["psnr"] for f in figures]
            spread = f" ± {stdev(losses):.3f}" if len(losses) > 1 else ""
            cells += [f"{mean(losses):.3f}{spread}", f"{mean(f['ssim'] for f in figures):.4f}"]
            cells += [
                f"{mean(f['self_psnr'] for f in figures):.2f}",
                f"{mean(f['fab'] for f in figures):.2f}",
            ]
        cells += [f"{mean(r['sets']['calibration']['fab'] for r in seeds):.3f}"]
        cells += [
            f"{mean(r['bytes'] for r in seeds) / 1e6:.3f}",
            f"{mean(r['units'] for r in seeds):.0f}",
        ]
        rows.append(cells)
    of_set = [
        f"{name} {figure}" for name in SETS for figure in ("loss (dB)", "SSIM", "self-PSNR", "FAB")
    ]
    headers = [
        "network",
        "bits",
        "variant",
        "seeds",
        *of_set,
        "calibration FAB",
        "size (MB)",
        "forward units",
    ]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def plot(runs: dict[str, dict], path: Path) -> None:
    """PSNR against BitOPs on Set14, a panel for each network."""
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(r["network"] for r in runs.values()))
    figure, panels = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 4), squeeze=False)
    for kind, panel in zip(kinds, panels[0]):
        metric = "self_psnr" if kind in PERCEPTUAL else "psnr"
        for variant in dict.fromkeys(r["variant"] for r in runs.values() if r["network"] == kind):
            points = [
                r["sets"]["Set14"]
                for r in runs.values()
                if (r["network"], r["variant"]) == (kind, variant)
            ]
            points.sort(key=lambda p: p["bitops"])
            x = [p["bitops"] / 1e12 for p in points]
            panel.plot(x, [p[metric] for p in points], "o-", label=variant, alpha=0.8)
        panel.set(
            title=f"{kind} x4, Set14",
            xlabel="TeraBitOPs per image",
            ylabel=f"{metric.replace('_', '-')} (dB)",
        )
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run what is missing, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for experiments and results"
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4])
    parser.add_argument(
        "--variants", nargs="+", default=MAIN_VARIANTS, choices=list(VARIANTS), metavar="VARIANT"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    make_example_project_importable()
    os.chdir(args.out)
    results = Path("accuracy.json")
    runs = json.loads(results.read_text()) if results.is_file() else {}
    for seed in args.seeds:
        for kind in args.networks:
            for bits in args.bits:
                for variant in args.variants:
                    name = run_name(kind, bits, variant, seed)
                    if name not in runs:
                        runs[name] = run(kind, bits, variant, seed)
                        with atomic_path(results) as temporary:
                            temporary.write_text(json.dumps(runs, indent=2))
    table = make_table(runs)
    Path("accuracy.md").write_text(table + "\n")
    plot(runs, Path("accuracy.png"))
    print(table)


if __name__ == "__main__":
    main()
