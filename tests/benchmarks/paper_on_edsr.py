"""The recipe ``paper`` on EDSR x4: accuracy over seeds beside the published algorithm.

    python tests/benchmarks/paper_on_edsr.py --out DIR [--seeds 1 2 3] [--iterations 400]

Each run goes through `adabm-basicsr train`. Needs the images and weights of ``../shared``. Prints a
table and writes ``paper_on_edsr.json``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import mean, stdev

from tabulate import tabulate
from training_runs import timed_run

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
OPTIONS = ROOT / "options" / "train" / "EDSR" / "train_AdaBM_EDSR_Mx4.yml"
FIGURES = [("Set5", "psnr"), ("Set14", "psnr"), ("Set5", "fab"), ("Set14", "fab")]


def run(seed: int, iterations: int, out: Path) -> dict:
    """Quantize EDSR with one seed below ``out``; PSNR, FAB and the rest per set, and its cost."""
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    if not Path("datasets").exists():
        Path("datasets").symlink_to(SHARED / "data")
    name = f"paper_seed{seed}"
    changes = {
        "name": name,
        "manual_seed": seed,
        "network_g:recipe": "paper",
        "path:pretrain_network_g": SHARED / "weights" / "EDSR_Mx4_f64b16_BSDS400.pth",
        "datasets:train:lq_size": 64,
        "train:total_iter": iterations,
        "val:val_freq": iterations + 1,
        "logger:use_tb_logger": "false",
    }
    overrides = [f"{key}={value}" for key, value in changes.items()]
    cost = timed_run(["-opt", str(OPTIONS), "--force_yml", *overrides])
    metrics = json.loads(Path(f"experiments/{name}/metrics.json").read_text())
    return {**metrics, **cost}


def reference() -> dict[tuple[str, str], list[float]]:
    """The published algorithm's figures over its three seeds, by set and metric."""
    runs = json.loads((SHARED / "reference" / "paper_on_edsr.json").read_text())["runs"]
    return figures_of([run["finetuned"] for run in runs])


def figures_of(runs: list[dict]) -> dict[tuple[str, str], list[float]]:
    """A list over the seeds for each set and metric."""
    figures = {}
    for dataset, metric in FIGURES:
        figures[dataset, metric] = [run[dataset][metric] for run in runs]
    return figures


def make_table(runs: dict[int, dict]) -> str:
    """Ours and the published figures, mean and standard deviation over seeds."""
    ours = figures_of(list(runs.values()))
    rows = []
    for index, (seed, result) in enumerate(runs.items()):
        cells = [f"{ours[key][index]:.3f}" for key in FIGURES]
        rows.append([f"seed {seed}", *cells, f"{result['units']:.0f}"])
    for name, figures in (("ours", ours), ("published", reference())):
        means = [f"{mean(figures[key]):.3f}" for key in FIGURES]
        rows.append([f"{name}, mean", *means])
        if len(figures[FIGURES[0]]) > 1:
            deviations = [f"{stdev(figures[key]):.3f}" for key in FIGURES]
            rows.append([f"{name}, std", *deviations])
    names = [f"{dataset} {metric.upper()}" for dataset, metric in FIGURES]
    return tabulate(rows, headers=["", *names, "forward units"], tablefmt="github")


def main() -> None:
    """Train, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, default=400)
    args = parser.parse_args()
    out = args.out.resolve()
    runs = {seed: run(seed, args.iterations, out) for seed in args.seeds}
    (out / "paper_on_edsr.json").write_text(json.dumps(runs, indent=2))
    print(make_table(runs))


if __name__ == "__main__":
    main()
