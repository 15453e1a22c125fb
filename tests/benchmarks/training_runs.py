"""Training runs of benchmarks: with an option file, as users start them, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from adabm_basicsr import QuantizedNetwork, load_checkpoint
from adabm_basicsr.models import adabm_model
from adabm_basicsr.quantization.finetuning.finetune import Finetuner
from adabm_basicsr.train import main as train

OPTIONS = Path("options.yml")


def quantize_by(opt: dict[str, Any]) -> tuple[QuantizedNetwork, dict[str, float]]:
    """Train with the options of a file, which is written to the working folder.

    Returns:
        The quantized network in its last state, and the seconds and forward units that it took.
    """
    from basicsr.archs import build_network

    OPTIONS.write_text(yaml.safe_dump(opt, sort_keys=False))
    cost = timed_run(["-opt", str(OPTIONS)])
    net = build_network(opt["network_g"])
    load_checkpoint(net, Path("experiments", opt["name"], "models", "net_g_latest.pth"))
    return net, cost


class Stopwatch:
    """Seconds that calls of calibration and fine-tuning take, and those of a forward unit.

    The unit, a forward of the full-precision network on one patch, is taken before every 40th call.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.units: list[float] = []

    def time(self, work: Callable[[], Any], net: QuantizedNetwork, images: torch.Tensor) -> Any:
        """Do ``work``, whose time counts, and return its result."""
        if len(self.seconds) % 40 == 0:
            self._time_unit(net, images[:1])
        start = time.perf_counter()
        result = work()
        self.seconds.append(time.perf_counter() - start)
        return result

    @torch.no_grad()
    def _time_unit(self, net: QuantizedNetwork, patch: torch.Tensor) -> None:
        with net.full_precision():
            for _ in range(5):
                start = time.perf_counter()
                net(patch)
                self.units.append(time.perf_counter() - start)


def timed_run(argv: list[str]) -> dict[str, float]:
    """Train with these arguments, and return the seconds and forward units that it took.

    Loading and validation don't count.
    """
    watch = Stopwatch()
    calibrate = adabm_model.calibrate
    step = Finetuner.step

    def timed_calibrate(net: QuantizedNetwork, batches: Iterable[torch.Tensor], *rest: Any) -> Any:
        # A list, as the first batch is wanted twice, and an iterator gives it once.
        batches = list(batches)
        return watch.time(lambda: calibrate(net, batches, *rest), net, batches[0])

    def timed_step(tuner: Finetuner, images: torch.Tensor, *rest: Any, **options: Any) -> Any:
        return watch.time(lambda: step(tuner, images, *rest, **options), tuner.net, images)

    adabm_model.calibrate = timed_calibrate
    Finetuner.step = timed_step
    try:
        train(argv)
    finally:
        adabm_model.calibrate = calibrate
        Finetuner.step = step
    seconds = sum(watch.seconds)
    return {"seconds": seconds, "units": seconds / median(watch.units)}
