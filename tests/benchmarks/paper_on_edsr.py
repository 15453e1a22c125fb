"""The recipe ``paper`` on EDSR x4, through ``adabm-basicsr train``: accuracy over seeds beside the published algorithm.

    python tests/benchmarks/paper_on_edsr.py --out DIR [--seeds 1 2 3] [--iterations 400]

Needs the images and weights of ``../shared``. Prints a table and writes ``paper_on_edsr.json``.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import mean, stdev

from tabulate import tabulate

from adabm_basicsr.train import main as train

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
OPTIONS = ROOT / "options" / "train" / "EDSR" / "train_AdaBM_EDSR_Mx4_W4A4.yml"
FIGURES = [(dataset, metric) for metric in ("psnr", "fab") for dataset in ("Set5", "Set14")]


def run(seed: int, iterations: int, out: Path) -> dict:
    """Quantize EDSR with one seed below ``out``; PSNR, FAB and the rest per set, and the seconds it took."""
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    if not Path("datasets").exists():
        Path("datasets").symlink_to(SHARED / "data")
    changes = {
        "name": f"paper_seed{seed}",
        "manual_seed": seed,
        "path:pretrain_network_g": SHARED / "weights" / "EDSR_Mx4_f64b16_BSDS400.pth",
        "datasets:train:lq_size": 64,
        "train:total_iter": iterations,
        "val:val_freq": iterations + 1,
        "logger:use_tb_logger": "false",
    }
    start = time.time()
    train(["-opt", str(OPTIONS), "--force_yml", *[f"{key}={value}" for key, value in changes.items()]])
    metrics = json.loads(Path(f"experiments/paper_seed{seed}/metrics.json").read_text())
    return {**metrics, "seconds": time.time() - start}


def reference() -> dict[tuple[str, str], list[float]]:
    """The published algorithm's figures over its three seeds, and those of full precision."""
    runs = json.loads((SHARED / "reference" / "paper_on_edsr.json").read_text())["runs"]
    return {(dataset, metric): [r["finetuned"][dataset][metric] for r in runs] for dataset, metric in FIGURES}


def make_table(runs: dict[int, dict]) -> str:
    """Ours and the published figures, mean and standard deviation over seeds."""
    published = reference()
    rows = [[f"seed {seed}", *(f"{r[dataset][metric]:.3f}" for dataset, metric in FIGURES)] for seed, r in runs.items()]
    ours = {key: [r[key[0]][key[1]] for r in runs.values()] for key in FIGURES}
    for name, figures in (("ours", ours), ("published", published)):
        rows.append([f"{name}, mean", *(f"{mean(figures[key]):.3f}" for key in FIGURES)])
        if len(figures[FIGURES[0]]) > 1:
            rows.append([f"{name}, std", *(f"{stdev(figures[key]):.3f}" for key in FIGURES)])
    return tabulate(rows, headers=["", "Set5 PSNR", "Set14 PSNR", "Set5 FAB", "Set14 FAB"], tablefmt="github")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
