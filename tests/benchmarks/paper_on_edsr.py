"""The recipe ``paper`` on EDSR x4, through ``adabm-basicsr train``: accuracy over seeds beside the published algorithm.

    python tests/benchmarks/paper_on_edsr.py --out DIR [--seeds 1 2 3] [--iterations 400]

Needs the images and weights of ``../shared``. Prints a table and writes ``paper_on_edsr.json``.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import mean, median, stdev

import torch
from tabulate import tabulate

from adabm_basicsr.models import adabm_model
from adabm_basicsr.train import main as train

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
OPTIONS = ROOT / "options" / "train" / "EDSR" / "train_AdaBM_EDSR_Mx4.yml"
FIGURES = [(dataset, metric) for metric in ("psnr", "fab") for dataset in ("Set5", "Set14")]

HEADERS = [f"{dataset} {metric.upper()}" for dataset, metric in FIGURES]


class Stopwatch:
    """Seconds spent in calibration and fine-tuning, and those of a forward unit, taken every 40 calls among them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.units: list[float] = []

    def around(self, work: callable, net_and_images: callable) -> callable:
        """``work``, timed; ``net_and_images`` finds both in its arguments."""

        def timed(*args, **kwargs):
            if len(self.seconds) % 40 == 0:
                self._time_unit(*net_and_images(*args))
            start = time.perf_counter()
            result = work(*args, **kwargs)
            self.seconds.append(time.perf_counter() - start)
            return result

        return timed

    @torch.no_grad()
    def _time_unit(self, net: torch.nn.Module, images: torch.Tensor) -> None:
        with net.full_precision():
            for _ in range(5):
                start = time.perf_counter()
                net(images[:1])
                self.units.append(time.perf_counter() - start)


def timed_run(argv: list[str]) -> dict[str, float]:
    """Train, and tell its cost in forward units, loading and validation apart."""
    watch = Stopwatch()
    calibrate, step = adabm_model.calibrate, adabm_model.Finetuner.step
    adabm_model.calibrate = watch.around(
        lambda net, batches: calibrate(net, batches), lambda net, b: (net, next(iter(b)))
    )
    adabm_model.Finetuner.step = watch.around(
        step, lambda tuner, images, *rest: (tuner.net, images)
    )
    try:
        train(argv)
    finally:
        adabm_model.calibrate, adabm_model.Finetuner.step = calibrate, step
    return {"seconds": sum(watch.seconds), "units": sum(watch.seconds) / median(watch.units)}


def run(seed: int, iterations: int, out: Path) -> dict:
    """Quantize EDSR with one seed below ``out``; PSNR, FAB and the rest per set, and its cost."""
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    if not Path("datasets").exists():
        Path("datasets").symlink_to(SHARED / "data")
    changes = {
        "name": f"paper_seed{seed}",
        "manual_seed": seed,
        "network_g:recipe": "paper",
        "path:pretrain_network_g": SHARED / "weights" / "EDSR_Mx4_f64b16_BSDS400.pth",
        "datasets:train:lq_size": 64,
        "train:total_iter": iterations,
        "val:val_freq": iterations + 1,
        "logger:use_tb_logger": "false",
    }
    cost = timed_run(
        ["-opt", str(OPTIONS), "--force_yml", *[f"{key}={value}" for key, value in changes.items()]]
    )
    metrics = json.loads(Path(f"experiments/paper_seed{seed}/metrics.json").read_text())
    return {**metrics, **cost}


def reference() -> dict[tuple[str, str], list[float]]:
    """The published algorithm's figures over its three seeds, and those of full precision."""
    runs = json.loads((SHARED / "reference" / "paper_on_edsr.json").read_text())["runs"]
    return {
        (dataset, metric): [r["finetuned"][dataset][metric] for r in runs]
        for dataset, metric in FIGURES
    }


def make_table(runs: dict[int, dict]) -> str:
    """Ours and the published figures, mean and standard deviation over seeds."""
    published = reference()
    rows = []
    for seed, r in runs.items():
        figures = [f"{r[dataset][metric]:.3f}" for dataset, metric in FIGURES]
        rows.append([f"seed {seed}", *figures, f"{r['units']:.0f}"])
    ours = {key: [r[key[0]][key[1]] for r in runs.values()] for key in FIGURES}
    for name, figures in (("ours", ours), ("published", published)):
        rows.append([f"{name}, mean", *(f"{mean(figures[key]):.3f}" for key in FIGURES)])
        if len(figures[FIGURES[0]]) > 1:
            rows.append([f"{name}, std", *(f"{stdev(figures[key]):.3f}" for key in FIGURES)])
    return tabulate(rows, headers=["", *HEADERS, "forward units"], tablefmt="github")


def main() -> None:
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
