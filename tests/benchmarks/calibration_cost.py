"""What a whole quantization costs, beside the published recipe written plainly.

    python tests/benchmarks/calibration_cost.py --out DIR [--networks EDSR ...]
        [--recipes paper ...] [--growth]

Costs are forward units and peak memory. A forward unit is one float32 forward of the full-precision
network on one LR patch of the same size, timed in the same process before and after each phase.
Fine-tuning is timed over ``--steps`` iterations of each phase and scaled up to the recipe's. Every
measurement has a process of its own, so that its peak memory is its own. Weights and images are
random: the cost doesn't depend on them. Prints tables, writes ``calibration_cost.json`` and a plot,
with ``--growth`` also of how costs grow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import peak_bytes
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
AXIS_LABELS = {"images": "images", "size": "side of the patches", "depth": "blocks"}


@dataclass
class Setting:
    """One measurement; the defaults are those of the published implementation's figures.

    Attributes:
        network: Architecture, a key of `NETWORKS`.
        recipe: A recipe, or `NAIVE`.
        images: Number of calibration images.
        size: Side of an LR patch in pixels.
        depth: Number of blocks, where it isn't the network's own.
        epochs: Of fine-tuning.
        calibration_batch: Images of a batch of calibration.
        batch: Images of a batch of fine-tuning.
        steps: Iterations of each phase that are timed.
    """

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
    """The network in full precision, with random weights."""
    import basicsr.archs  # noqa: F401 - registers the networks
    from basicsr.utils.registry import ARCH_REGISTRY

    make_example_project_importable()
    import inhouse.archs  # noqa: F401 - registers IMDN

    torch.manual_seed(0)
    options = dict(NETWORKS[setting.network])
    if setting.depth:
        options["num_block"] = setting.depth
    return ARCH_REGISTRY.get(setting.network)(**options).eval().requires_grad_(False)


class Clock:
    """Times phases in forward units.

    The unit is taken before and after each phase, as the speed of a machine varies.

    Args:
        network: The network in full precision.
        patch: One LR patch, ``(1, 3, H, W)``.
    """

    def __init__(self, network: torch.nn.Module, patch: torch.Tensor) -> None:
        self.network = network
        self.patch = patch
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

    def time(self, phase: str, work: Callable[[], Any], share: float = 1.0) -> None:
        """Run ``work``, which is ``share`` of the phase."""
        start = self._now()
        work()
        seconds = self._now() - start
        before = self.latest
        self.latest = self._unit()
        self.units.append(self.latest)
        self.phases[phase] = seconds / share / ((before + self.latest) / 2)


def measure(setting: Setting) -> dict:
    """Units of each phase, seconds of a unit and peak resident memory."""
    if setting.recipe != NAIVE:
        # As the commands do.
        keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build(setting).to(device)
    images = torch.rand(setting.images, 3, setting.size, setting.size, device=device)
    batches = list(images.split(setting.batch))
    calibration = list(torch.cat(batches).split(setting.calibration_batch))
    example = batches[0][:1]
    clock = Clock(network, example)
    recipe = "paper" if setting.recipe == NAIVE else setting.recipe
    net = quantize(network, example, w_bits=4, a_bits=4, recipe=recipe, fully_quantized=True)
    if setting.recipe == NAIVE:
        _run_naive(setting, clock, NaivePaper(network, net), calibration, batches)
    else:
        _run_ours(setting, clock, net, calibration, batches)

    result = asdict(setting)
    result["unit_seconds"] = median(clock.units)
    result["units"] = clock.phases
    result["total_units"] = sum(clock.phases.values())
    result["peak_bytes"] = peak_bytes()
    if device.type == "cuda":
        result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return result


def _run_naive(
    setting: Setting,
    clock: Clock,
    plain: NaivePaper,
    calibration: list[torch.Tensor],
    batches: list[torch.Tensor],
) -> None:
    clock.time("calibration", lambda: plain.calibrate(calibration))
    clock.time("clipping", lambda: plain.clip(batches[0]))

    def step(index: int, epoch: int) -> None:
        plain.step(batches[index], epoch)

    _time_phases(setting, clock, list(RECIPES["paper"].finetuning.phases), step)


def _run_ours(
    setting: Setting,
    clock: Clock,
    net: QuantizedNetwork,
    calibration: list[torch.Tensor],
    batches: list[torch.Tensor],
) -> None:
    clock.time("calibration", lambda: calibrate(net, calibration))
    if net.config.calibration.clip:
        clock.time("clipping", lambda: clip(net, batches[0]))
    tuner = Finetuner(net, FinetuneSettings(), setting.iterations_per_epoch)
    if not tuner.phases:
        return
    # Keys of the fixed crops of each batch, by which the teacher's outputs are kept.
    keys: list[range | None] = [None] * len(batches)
    if net.config.finetuning.fixed_crops:
        starts = range(0, setting.images, setting.batch)
        keys = [range(start, start + setting.batch) for start in starts]
        _time_teacher(setting, clock, tuner, batches, keys)

    def step(index: int, epoch: int) -> None:
        iteration = 1 + epoch * setting.iterations_per_epoch
        tuner.step(batches[index], iteration, keys=keys[index])

    _time_phases(setting, clock, tuner.phases, step)


def _time_teacher(
    setting: Setting,
    clock: Clock,
    tuner: Finetuner,
    batches: list[torch.Tensor],
    keys: list[range],
) -> None:
    """Time the teacher's forwards over all epochs.

    That is a pass over all fixed crops in the first epoch, and one over those whose outputs aren't
    kept in each later epoch.
    """

    def run_all() -> None:
        for batch, of_batch in zip(batches, keys, strict=True):
            tuner.teacher(batch, tuner.net, of_batch)

    clock.time("teacher", run_all)
    missing = 0
    for of_batch in keys:
        missing += sum(key not in tuner.teacher for key in of_batch)
    clock.phases["teacher"] *= 1 + (setting.epochs - 1) * (missing / setting.images)


def _time_phases(
    setting: Setting, clock: Clock, phases: list[str], step: Callable[[int, int], None]
) -> None:
    """Time some iterations of each phase; ``step`` takes the index of a batch, and the epoch."""
    # Whatever is set up at the first step doesn't count.
    step(0, 0)
    count = min(setting.steps, setting.iterations_per_epoch)

    for epoch, phase in enumerate(phases):

        def run_some(epoch: int = epoch) -> None:
            for index in range(count):
                step(index, epoch)

        # Phases take turns, an epoch each.
        epochs = len(range(epoch, setting.epochs, len(phases)))
        share = count / (epochs * setting.iterations_per_epoch)
        clock.time(phase, run_some, share)


def in_own_process(setting: Setting) -> dict:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(setting))]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def table_of_costs(results: list[dict]) -> str:
    """A row per measurement, with its share of the plain one."""
    phases = phases_of(results)
    plain = {result["network"]: result for result in results if result["recipe"] == NAIVE}
    rows = []
    for result in results:
        row = [result["network"], result["recipe"]]
        for phase in phases:
            row.append(f"{result['units'][phase]:.0f}" if phase in result["units"] else "-")
        base = plain.get(result["network"])
        row.append(f"{result['total_units']:.0f}")
        row.append(_share(result, base, "total_units"))
        row.append(f"{result['peak_bytes'] / 1e9:.2f}")
        row.append(_share(result, base, "peak_bytes"))
        rows.append(row)
    names = [phase.replace("_", " ") for phase in phases]
    headers = ["network", "recipe", *names, "units", "of plain", "peak GB", "of plain"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _share(result: dict, base: dict | None, key: str) -> str:
    if base is None:
        return ""
    return f"{100 * result[key] / base[key]:.0f} %"


def phases_of(results: list[dict]) -> list[str]:
    """All phases of the measurements, in order."""
    phases: dict[str, None] = {}
    for result in results:
        phases.update(dict.fromkeys(result["units"]))
    return list(phases)


def slope(x: list[float], y: list[float]) -> float:
    """Slope of a line through the points on log-log axes."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def seconds(result: dict) -> float:
    """Duration of a whole quantization."""
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
    growth: dict[str, list[dict]] = {}
    for axis, values in GROWTH.items():
        growth[axis] = []
        for value in values:
            setting = Setting(**(small | {axis: value}))
            growth[axis].append(in_own_process(setting))
    return growth


def table_of_growth(growth: dict[str, list[dict]]) -> str:
    """Log-log slopes of time and memory."""
    rows = []
    for axis, results in growth.items():
        name = axis
        x = [result[axis] for result in results]
        if axis == "size":
            name = "pixels"
            x = [side**2 for side in x]
        of_time = slope(x, [seconds(result) for result in results])
        of_memory = slope(x, [result["peak_bytes"] for result in results])
        rows.append([name, f"{of_time:.2f}", f"{of_memory:.2f}"])
    headers = ["growth with", "time", "memory"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


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
    _plot_costs(axes[0], results)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize="small")
    for axis, (name, runs) in zip(axes[1:], growth.items(), strict=True):
        _plot_growth(axis, name, runs)
    figure.savefig(path, dpi=120)


def _plot_costs(axis: Any, results: list[dict]) -> None:
    """A bar per measurement, made of its phases."""
    labels = [f"{result['network']}: {result['recipe']}" for result in results]
    left = np.zeros(len(results))
    for phase in phases_of(results):
        units = np.array([result["units"].get(phase, 0) for result in results])
        axis.barh(labels, units, left=left, label=phase.replace("_", " "))
        left += units
    axis.set_xlabel("forward units")
    axis.invert_yaxis()
    axis.margins(x=0.05)


def _plot_growth(axis: Any, name: str, runs: list[dict]) -> None:
    values = [run[name] for run in runs]
    axis.loglog(values, [seconds(run) for run in runs], "o-", label="seconds")
    axis.loglog(values, [run["peak_bytes"] / 1e9 for run in runs], "s-", label="peak GB")
    axis.set_xticks(values, [str(value) for value in values])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(AXIS_LABELS[name])
    axis.legend()


def read_arguments() -> argparse.Namespace:
    """What the command line asks for; with ``--measure``, a single measurement in this process."""
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
    if not args.out and not args.measure:
        parser.error("--out is missing")
    return args


def main() -> None:
    """Measure, print, and write the results."""
    args = read_arguments()
    if args.measure:
        print(json.dumps(measure(Setting(**args.measure))))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for network in args.networks:
        for recipe in args.recipes:
            results.append(in_own_process(Setting(network, recipe, steps=args.steps)))
    print(table_of_costs(results))
    growth = measure_growth("paper") if args.growth else {}
    figures = {"cost": results, "growth": growth}
    (args.out / "calibration_cost.json").write_text(json.dumps(figures, indent=2))
    if growth:
        print(f"\n{table_of_growth(growth)}")
    plot(results, growth, args.out / "calibration_cost.png")


if __name__ == "__main__":
    main()
