"""What quantization would come to, and what to choose, before anything is trained.

`analyse_network` has everything measured and estimated (see `estimates`), marks the knee of each
trade-off curve, and says which options reach a quality and fit the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adabm_basicsr.quantization.calibration.calibrate import PROBED, representative
from adabm_basicsr.quantization.calibration.contents import warn_of_empty_images
from adabm_basicsr.quantization.calibration.estimates import (
    Estimator,
    LayerAnalysis,
    Setting,
    layers_of,
    measure,
    settings_of,
)
from adabm_basicsr.quantization.calibration.folding import fold_channel_scales
from adabm_basicsr.quantization.calibration.statistics import observe, read_batches
from adabm_basicsr.quantization.engines import KERNEL_BITS
from adabm_basicsr.quantization.measures.coverage import measure_coverage
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.precision import full_float32

OBSERVED = 16  # images that ranges are measured on
LARGEST = 48  # pixels along a side of what is taken of an image
WANTED = (40, 45, 50)  # dB of self-PSNR that ways to are named
GOOD = 45.0  # dB of self-PSNR at which differences are hard to see
HALF = 0.5  # of the error
MAX_NAMED = 3


@dataclass
class Way:
    """How to reach a self-PSNR.

    Attributes:
        wanted: The self-PSNR in dB.
        options: The line of an option file, below ``network_g``.
        why: What speaks for it.
        self_psnr: Its estimate in dB; None of a target, which is held by measuring.
    """

    wanted: float
    options: str
    why: str
    self_psnr: float | None


@dataclass
class Analysis:
    """What quantization would come to, by estimates.

    Attributes:
        engine: What the network would run in.
        coverage: What would be quantized and what not, in words.
        layers: Sensitivity of each layer, in execution order.
        settings: Bits and their quality and cost: the trade-off curves.
        ways: Options that would reach 40, 45 and 50 dB.
        choice: The setting that fits the engine.
        advice: Sentences on what to choose.
    """

    engine: str
    coverage: str
    layers: list[LayerAnalysis]
    settings: list[Setting]
    ways: list[Way]
    choice: Setting
    advice: list[str]


@full_float32()
@torch.no_grad()
def analyse_network(net: QuantizedNetwork, batches: Iterable[Tensor]) -> Analysis:
    """Estimate what quantization would come to, without fitting or training anything.

    Args:
        net: A quantized network that isn't calibrated yet. Its bits and ranges change: make another
            one to quantize.
        batches: Batches of LR images, each ``(B, C, H, W)`` in 0..1. `OBSERVED` of them are looked
            at, the middle of those that are large.

    Raises:
        AdaBMError: There is no batch, or one holds values that are not finite.
    """
    with net.lock:
        images = [_middle(representative(read_batches(batches), OBSERVED))]
        warn_of_empty_images(images)
        probed = representative(images, PROBED)
        if net.config.folds_channel_scales:
            fold_channel_scales(net, probed)
        statistics, _ = observe(net, images)
        estimator = Estimator(net, measure(net, statistics, images, probed))
        settings = settings_of(estimator)
        _mark_knees(settings)
        choice = _choice(settings)
        layers = layers_of(estimator)
        return Analysis(
            engine=net.config.engine,
            coverage=str(measure_coverage(net)),
            layers=layers,
            settings=settings,
            ways=_ways(settings, net),
            choice=choice,
            advice=_advice(net, settings, choice, layers),
        )


def _middle(images: Tensor) -> Tensor:
    """The middle of images that are larger than `LARGEST`."""
    height, width = images.shape[-2:]
    top = max(height - LARGEST, 0) // 2
    left = max(width - LARGEST, 0) // 2
    return images[..., top : top + LARGEST, left : left + LARGEST]


# The knee of each curve


def _mark_knees(settings: Sequence[Setting]) -> None:
    """Mark the knee of each trade-off curve."""
    eight = [setting for setting in settings if setting.curve == "8"]
    equal = [setting for setting in settings if setting.curve == "equal"]
    _mark_knee(eight)
    if equal:
        # W8A8 ends both.
        _mark_knee(equal, eight[-1])


def _mark_knee(points: Sequence[Setting], end: Setting | None = None) -> None:
    """Mark the point that lies farthest above the line from the first to the last.

    Args:
        points: Of a curve, from few to many bits; one of them is changed.
        end: Point that ends the curve and belongs to another one too, which isn't marked.
    """
    last = end or points[-1]
    first = points[0]
    cost = last.bitops_share - first.bitops_share
    gain = last.self_psnr - first.self_psnr
    if cost <= 0 or gain <= 0:
        return

    def height(point: Setting) -> float:
        paid = (point.bitops_share - first.bitops_share) / cost
        got = (point.self_psnr - first.self_psnr) / gain
        return got - paid

    max(points, key=height).knee = True


# What to choose


def _choice(settings: Sequence[Setting]) -> Setting:
    """With activations of 8 bits the knee, or the next bits that are good, or the best ones."""
    eight = [setting for setting in settings if setting.curve == "8"]
    is_beyond_knee = False
    for setting in eight:
        is_beyond_knee = is_beyond_knee or setting.knee
        if is_beyond_knee and setting.self_psnr >= GOOD:
            return setting
    return max(eight, key=lambda setting: setting.self_psnr)


def _ways(settings: Sequence[Setting], net: QuantizedNetwork) -> list[Way]:
    """How to reach each of `WANTED`."""
    ways = []
    for wanted in WANTED:
        enough = [setting for setting in settings if setting.self_psnr >= wanted]
        if not enough:
            ways.append(_beyond_eight_bits(wanted, net))
            continue
        eight = [setting for setting in enough if setting.curve == "8"]
        smallest = _cheapest(eight or enough, lambda setting: setting.size_share)
        ways.append(_way(wanted, smallest, "smallest file, no slower"))
        fewest = _cheapest(enough, lambda setting: setting.bitops_share)
        if fewest != smallest:
            ways.append(_way(wanted, fewest, "fewest BitOPs"))
    return ways


def _cheapest(settings: Sequence[Setting], cost: Callable[[Setting], float]) -> Setting:
    return min(settings, key=cost)


def _way(wanted: float, setting: Setting, why: str) -> Way:
    return Way(wanted, setting.options, why, setting.self_psnr)


def _beyond_eight_bits(wanted: float, net: QuantizedNetwork) -> Way:
    why = "keeps the layers in float that 8 bits don't do for"
    if not net.config.calibration.allocate:
        return Way(wanted, f"recipe: fast, target: {{self_psnr: {wanted:g}}}", why, None)
    return Way(wanted, f"target: {{self_psnr: {wanted:g}}}", why, None)


def _advice(
    net: QuantizedNetwork,
    settings: Sequence[Setting],
    choice: Setting,
    layers: Sequence[LayerAnalysis],
) -> list[str]:
    """What to choose, in sentences."""
    engine = net.config.engine
    lines = [
        f"For engine {engine}: {choice.options} (estimate {choice.self_psnr:.1f} dB, "
        f"{100 * choice.size_share:.1f} % of the size)."
    ]
    for setting in settings:
        if setting.curve == "equal" and setting.w_bits == choice.w_bits:
            lost = choice.self_psnr - setting.self_psnr
            lines.append(
                f"Its kernels multiply integers of {KERNEL_BITS} bits: {setting.options} runs no "
                f"faster and loses {lost:.1f} dB more. Activations below {KERNEL_BITS} bits pay in "
                "BitOPs alone."
            )
    if choice.self_psnr < GOOD:
        lines.append(
            f"{GOOD:g} dB are beyond 8 bits here: target: {{self_psnr: {GOOD:g}}} keeps the "
            "layers in float that need it."
        )
    lines.append(_loudest(layers))
    return lines


def _loudest(layers: Sequence[LayerAnalysis]) -> str:
    """Which layers make half of the error."""
    names = []
    share = 0.0
    for layer in sorted(layers, key=lambda layer: layer.error_share, reverse=True):
        if share >= HALF:
            break
        names.append(layer.name)
        share += layer.error_share
    shown = ", ".join(names[:MAX_NAMED])
    if len(names) > MAX_NAMED:
        shown += f" and {len(names) - MAX_NAMED} more"
    return (
        f"{len(names)} of {len(layers)} layers make {100 * share:.0f} % of the error at the bits "
        f"of the options: {shown}."
    )
