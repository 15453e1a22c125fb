"""Two and four processes against one with the same global batch.

    python tests/benchmarks/processes.py --out DIR [--networks EDSR IMDN] [--recipes best paper]
        [--processes 2 4]

Compares what calibration finds, and the final PSNR. Each run is `adabm-basicsr train` on CPUs with
its launcher, from an option file and nothing else; needs ../shared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from networks import SHARED, option_file, training_environment
from tabulate import tabulate

GLOBAL_BATCH = 8
# Last parts of the keys of what calibration finds.
FOUND = (
    "lower",
    "upper",
    "level_ranges",
    "channel_scale",
    "channel_shift",
    "allocated",
    "layer_factor",
)


def options(kind: str, recipe: str, processes: int, iterations: int) -> dict:
    """An option file, as a user would write it, with Set5 as validation set."""
    opt = option_file(
        f"{kind}_{recipe}_{processes}",
        kind,
        seed=0,
        images=32,
        lq_size=48,
        iterations={"total_iter": iterations},
        recipe=recipe,
        fully_quantized=True,
    )
    opt["num_gpu"] = 0
    opt["datasets"]["train"]["batch_size_per_gpu"] = GLOBAL_BATCH // processes
    opt["datasets"]["val"] = {
        "name": "Set5",
        "type": "PairedImageDataset",
        "dataroot_gt": str(SHARED / "data/Set5/GTmod12"),
        "dataroot_lq": str(SHARED / "data/Set5/LRbicx4"),
    }
    psnr = {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": True}
    opt["val"] = {"metrics": {"psnr": psnr}}
    return opt


def train(opt: dict, processes: int) -> None:
    """Run `adabm-basicsr train` in so many processes, below the working directory."""
    Path("options.yml").write_text(yaml.safe_dump(opt, sort_keys=False))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}"]
    command += ["-m", "adabm_basicsr.train", "-opt", "options.yml", "--launcher", "pytorch"]
    environment = {**training_environment(), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True)


def difference(one: dict[str, torch.Tensor], several: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of thresholds, ranges, channel scales and bits of two states."""
    differences = []
    for key, value in one.items():
        if key.rsplit(".", 1)[-1] in FOUND:
            expected = value.float()
            largest = (expected - several[key].float()).abs().max()
            differences.append(float(largest / expected.abs().max().clamp(min=1e-12)))
    return max(differences)


def read_run(opt: dict) -> tuple[dict[str, torch.Tensor], float]:
    """State after calibration, and final PSNR."""
    folder = Path("experiments") / opt["name"]
    state = torch.load(folder / "models" / "net_g_0.pth", weights_only=True)["params"]
    metrics = json.loads((folder / "metrics.json").read_text())
    return state, metrics["Set5"]["psnr"]


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for experiments and results"
    )
    parser.add_argument("--networks", nargs="+", default=["EDSR", "IMDN"])
    parser.add_argument("--recipes", nargs="+", default=["best", "paper"])
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--iterations", type=int, default=40, help="of fine-tuning")
    return parser.parse_args()


def compare(kind: str, recipe: str, processes: list[int], iterations: int) -> Iterator[dict]:
    """Rows of a network and recipe: one process, then so many as asked for."""
    alone = None
    for count in (1, *processes):
        opt = options(kind, recipe, count, iterations)
        train(opt, count)
        state, psnr = read_run(opt)
        if alone is None:
            alone = state
        yield {
            "network": kind,
            "recipe": recipe,
            "processes": count,
            "after calibration": difference(alone, state),
            "psnr": psnr,
        }


def main() -> None:
    """Train, compare, print and write ``processes.json``."""
    args = read_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    rows = []
    for kind in args.networks:
        for recipe in args.recipes:
            for row in compare(kind, recipe, args.processes, args.iterations):
                rows.append(row)
                Path("processes.json").write_text(json.dumps(rows, indent=2))
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g"))


if __name__ == "__main__":
    main()
