"""What a whole quantization costs, in forward units and peak memory, beside the published recipe written plainly.

    python tests/benchmarks/calibration_cost.py --out DIR [--networks EDSR ...] [--recipes paper ...] [--growth]

A forward unit is one float32 forward of the full-precision network on one LR patch of the same size, timed in the same
process before and after each phase. Fine-tuning is timed over ``--steps`` iterations of each phase and scaled up to the
recipe's. Every measurement has a process of its own, so that its peak memory is its own. Weights and images are random:
the cost doesn't depend on them. Prints tables, writes ``calibration_cost.json`` and, with ``--growth``, a plot.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from naive_paper import NaivePaper
from networks import NETWORKS, make_example_project_importable
from tabulate import tabulate

from adabm_basicsr import quantize
from adabm_basicsr.environment import keep_freed_memory
from adabm_basicsr.quantization.calibration.calibrate import calibrate
from adabm_basicsr.quantization.calibration.clipping import clip
from adabm_basicsr.quantization.finetuning.finetune import Finetuner, FinetuneSettings
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.recipes import RECIPES

NAIVE = "paper, plain"
GROWTH = {"images": [10, 20, 40, 80], "size": [32, 48, 64, 96], "depth": [4, 8, 16, 32]}


@dataclass
class Setting:
    """One measurement; the defaults are those of the published implementation's figures."""

    network: str = "EDSR"
    recipe: str = NAIVE
    images: int = 80
    size: int = 64
    depth: int | None = None
    epochs: int = 10
    calibration_batch: int = 16
    batch: int = 2
    steps: int = 8

    @property
    def iterations_per_epoch(self) -> int:
        return self.images // self.batch


def build(setting: Setting) -> torch.nn.Module:
    import basicsr.archs  # noqa: F401  registers the networks
    from basicsr.utils.registry import ARCH_REGISTRY

    make_example_project_importable()
    import inhouse.archs  # noqa: F401

    torch.manual_seed(0)
    options = dict(NETWORKS[setting.network])
    if setting.depth:
        options["num_block"] = setting.depth
    return ARCH_REGISTRY.get(setting.network)(**options).eval().requires_grad_(False)


class Clock:
    """Times phases in forward units: the unit is taken before and after each, as machines have their moods."""

    def __init__(self, network: torch.nn.Module, patch: torch.Tensor) -> None:
        self.network, self.patch = network, patch
        self.phases: dict[str, float] = {}
        self.latest = self._unit()
        self.units = [self.latest]

    @torch.no_grad()
    def _unit(self) -> float:
        times = []
        for _ in range(7):
            start = self._now()
            self.network(self.patch)
            times.append(self._now() - start)
        return median(times)

    def _now(self) -> float:
        if self.patch.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def time(self, phase: str, work: callable, share: float = 1.0) -> None:
        """Run ``work``, which is ``share`` of the phase."""
        start = self._now()
        work()
        seconds, before = self._now() - start, self.latest
        self.latest = self._unit()
        self.units.append(self.latest)
        self.phases[phase] = seconds / share / ((before + self.latest) / 2)


def measure(setting: Setting) -> dict:
    """Units of each phase, seconds of a unit and peak resident memory."""
    if setting.recipe != NAIVE:
        keep_freed_memory()  # as the commands do
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build(setting).to(device)
    batches = list(
        torch.rand(setting.images, 3, setting.size, setting.size, device=device).split(
            setting.batch
        )
    )
    calibration = list(torch.cat(batches).split(setting.calibration_batch))
    clock = Clock(network, batches[0][:1])
    recipe = "paper" if setting.recipe == NAIVE else setting.recipe
    net = quantize(network, batches[0][:1], w_bits=4, a_bits=4, recipe=recipe, fully_quantized=True)
    run = _run_naive if setting.recipe == NAIVE else _run_ours
    run(setting, clock, net, network, calibration, batches)
    gpu = {"peak_gpu_bytes": torch.cuda.max_memory_allocated()} if device.type == "cuda" else {}
    return {
        **asdict(setting),
        "unit_seconds": median(clock.units),
        "units": clock.phases,
        "total_units": sum(clock.phases.values()),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **gpu,
    }


def _run_naive(setting, clock, net, network, calibration, batches) -> None:
    plain = NaivePaper(network, net)
    clock.time("calibration", lambda: plain.calibrate(calibration))
    clock.time("clipping", lambda: plain.clip(batches[0]))
    _time_phases(
        setting,
        clock,
        list(RECIPES["paper"].finetuning.phases),
        lambda i, epoch: plain.step(batches[i], epoch),
        batches,
    )


def _run_ours(setting, clock, net: QuantizedNetwork, network, calibration, batches) -> None:
    clock.time("calibration", lambda: calibrate(net, calibration))
    if net.config.calibration.clip:
        clock.time("clipping", lambda: clip(net, batches[0]))
    tuner = Finetuner(net, FinetuneSettings(), setting.iterations_per_epoch)
    if not tuner.phases:
        return
    keys = None
    if net.config.finetuning.fixed_crops:
        keys = _time_teacher(setting, clock, tuner, batches)

    def step(index: int, epoch: int) -> None:
        iteration = 1 + epoch * setting.iterations_per_epoch
        tuner.step(batches[index], iteration, keys=None if keys is None else keys[index])

    _time_phases(setting, clock, tuner.phases, step, batches)


def _time_teacher(setting: Setting, clock: Clock, tuner: Finetuner, batches: list) -> list[range]:
    """A pass over all fixed crops in the first epoch, and over those that aren't kept in each later one; their keys."""
    keys = [
        range(start, start + setting.batch) for start in range(0, setting.images, setting.batch)
    ]
    clock.time("teacher", lambda: [tuner.teacher(b, tuner.net, k) for b, k in zip(batches, keys)])
    missing = (
        sum(key not in tuner.teacher for of_batch in keys for key in of_batch) / setting.images
    )
    clock.phases["teacher"] *= 1 + (setting.epochs - 1) * missing
    return keys


def _time_phases(
    setting: Setting, clock: Clock, phases: list[str], step: callable, batches: list
) -> None:
    step(0, 0)  # whatever is set up at the first step
    for index, phase in enumerate(phases):
        epochs = len(range(index, setting.epochs, len(phases)))
        count = min(setting.steps, len(batches))
        share = count / (epochs * setting.iterations_per_epoch)
        clock.time(phase, lambda: [step(i, index) for i in range(count)], share)  # noqa: B023  runs at once


def in_own_process(setting: Setting) -> dict:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(setting))]
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[
            -1
        ]
    )


def table_of_costs(results: list[dict]) -> str:
    """A row per measurement, with its share of the plain one."""
    phases = list(dict.fromkeys(phase for r in results for phase in r["units"]))
    plain = {r["network"]: r for r in results if r["recipe"] == NAIVE}
    rows = []
    for r in results:
        base = plain.get(r["network"], {})
        shares = [
            f"{100 * r[key] / base[key]:.0f} %" if base else ""
            for key in ("total_units", "peak_bytes")
        ]
        units = [f"{r['units'][phase]:.0f}" if phase in r["units"] else "-" for phase in phases]
        gigabytes = f"{r['peak_bytes'] / 1e9:.2f}"
        rows.append(
            [
                r["network"],
                r["recipe"],
                *units,
                f"{r['total_units']:.0f}",
                shares[0],
                gigabytes,
                shares[1],
            ]
        )
    headers = [
        "network",
        "recipe",
        *(p.replace("_", " ") for p in phases),
        "units",
        "of plain",
        "peak GB",
        "of plain",
    ]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def slope(x: list[float], y: list[float]) -> float:
    """Slope of a line through the points on log-log axes."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def seconds(result: dict) -> float:
    return result["total_units"] * result["unit_seconds"]


def measure_growth(recipe: str) -> dict[str, list[dict]]:
    """Whole runs along images, pixels of a patch and depth, the rest fixed at a small size."""
    small = {
        "recipe": recipe,
        "images": 16,
        "size": 48,
        "depth": 8,
        "epochs": 3,
        "steps": max(GROWTH["images"]),
    }
    return {
        axis: [in_own_process(Setting(**{**small, axis: value})) for value in values]
        for axis, values in GROWTH.items()
    }


def table_of_growth(growth: dict[str, list[dict]]) -> str:
    """Log-log slopes of time and memory."""
    rows = []
    for axis, results in growth.items():
        x = [r[axis] ** 2 if axis == "size" else r[axis] for r in results]
        slopes = slope(x, list(map(seconds, results))), slope(x, [r["peak_bytes"] for r in results])
        rows.append([axis.replace("size", "pixels"), *(f"{value:.2f}" for value in slopes)])
    return tabulate(
        rows, headers=["growth with", "time", "memory"], tablefmt="github", disable_numparse=True
    )


def plot(results: list[dict], growth: dict[str, list[dict]], path: Path) -> None:
    """Cost by phase, and growth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    widths = [2] + [1] * len(growth)
    figure, axes = plt.subplots(
        1, len(widths), figsize=(3.5 * sum(widths), 4), width_ratios=widths, layout="constrained"
    )
    axes = np.atleast_1d(axes)
    labels, left = [f"{r['network']}: {r['recipe']}" for r in results], np.zeros(len(results))
    for phase in dict.fromkeys(phase for r in results for phase in r["units"]):
        units = np.array([r["units"].get(phase, 0) for r in results])
        axes[0].barh(labels, units, left=left, label=phase.replace("_", " "))
        left += units
    axes[0].set_xlabel("forward units")
    axes[0].invert_yaxis()
    axes[0].margins(x=0.05)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize="small"
    )
    for axis, (name, runs) in zip(axes[1:], growth.items()):
        values = [r[name] for r in runs]
        axis.loglog(values, list(map(seconds, runs)), "o-", label="seconds")
        axis.loglog(values, [r["peak_bytes"] / 1e9 for r in runs], "s-", label="peak GB")
        axis.set_xticks(values, list(map(str, values)))
        axis.set_xticks([], minor=True)
        axis.set_xlabel({"size": "side of the patches", "depth": "blocks"}.get(name, name))
        axis.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument(
        "--networks", nargs="+", default=["EDSR", "SRVGGNetCompact", "IMDN"], choices=list(NETWORKS)
    )
    parser.add_argument(
        "--recipes", nargs="+", default=[NAIVE, *RECIPES], choices=[NAIVE, *RECIPES]
    )
    parser.add_argument(
        "--steps", type=int, default=8, help="iterations of each phase that are timed"
    )
    parser.add_argument(
        "--growth", action="store_true", help="also measure growth with images, pixels and depth"
    )
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Setting(**args.measure))))
        return
    if not args.out:
        parser.error("--out is missing")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = [
        Setting(network, recipe, steps=args.steps)
        for network in args.networks
        for recipe in args.recipes
    ]
    results = [in_own_process(setting) for setting in settings]
    print(table_of_costs(results))
    growth = measure_growth("paper") if args.growth else {}
    (args.out / "calibration_cost.json").write_text(
        json.dumps({"cost": results, "growth": growth}, indent=2)
    )
    if growth:
        print(f"\n{table_of_growth(growth)}")
    plot(results, growth, args.out / "calibration_cost.png")


if __name__ == "__main__":
    main()
