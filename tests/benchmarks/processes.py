"""Two and four processes against one with the same global batch: what calibration finds, and what comes out.

    python tests/benchmarks/processes.py --out DIR [--networks EDSR IMDN] [--recipes best paper] [--processes 2 4]

Each run is `adabm-basicsr train` on CPUs with its launcher, from an option file and nothing else; needs ../shared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from networks import EXAMPLE_PROJECT, ROOT, SHARED, option_file
from tabulate import tabulate

GLOBAL_BATCH = 8
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
    name = f"{kind}_{recipe}_{processes}"
    opt = option_file(
        name, kind, 0, 32, 48, {"total_iter": iterations}, recipe=recipe, fully_quantized=True
    )
    opt["datasets"]["train"]["batch_size_per_gpu"] = GLOBAL_BATCH // processes
    folders = {
        "dataroot_gt": str(SHARED / "data/Set5/GTmod12"),
        "dataroot_lq": str(SHARED / "data/Set5/LRbicx4"),
    }
    opt["datasets"]["val"] = {"name": "Set5", "type": "PairedImageDataset", **folders}
    opt["val"] = {
        "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": True}}
    }
    return {**opt, "num_gpu": 0}


def train(opt: dict, processes: int) -> None:
    """Run `adabm-basicsr train` in so many processes, below the working directory."""
    Path("options.yml").write_text(yaml.safe_dump(opt, sort_keys=False))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    command += ["-m", "adabm_basicsr.train", "-opt", "options.yml", "--launcher", "pytorch"]
    path = os.pathsep.join([str(ROOT), str(EXAMPLE_PROJECT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True)


def difference(one: dict[str, torch.Tensor], several: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of thresholds, ranges, channel scales and bits of two states."""
    keys = [key for key in one if key.rsplit(".", 1)[-1] in FOUND]
    pairs = [(one[key].float(), several[key].float()) for key in keys]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


def read_run(opt: dict) -> tuple[dict[str, torch.Tensor], float]:
    """State after calibration, and final PSNR."""
    folder = Path("experiments") / opt["name"]
    state = torch.load(folder / "models" / "net_g_0.pth", weights_only=True)["params"]
    return state, json.loads((folder / "metrics.json").read_text())["Set5"]["psnr"]


def main() -> None:
    """Train, compare, print and write ``processes.json``."""
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
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    rows = []
    for kind in args.networks:
        for recipe in args.recipes:
            runs = {}
            for processes in (1, *args.processes):
                opt = options(kind, recipe, processes, args.iterations)
                train(opt, processes)
                runs[processes] = read_run(opt)
                apart = difference(runs[1][0], runs[processes][0])
                rows.append({"network": kind, "recipe": recipe, "processes": processes})
                rows[-1] |= {"after calibration": apart, "psnr": runs[processes][1]}
                Path("processes.json").write_text(json.dumps(rows, indent=2))
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g"))


if __name__ == "__main__":
    main()
