"""What quantization would come to, estimated before anything is trained.

`analyse_network` measures what the image loses by each quantizer alone at 8, 6 and 4 bits, and adds
up these losses for whatever bits the quantizers may have (see `noise`): the squared errors of
independent roundings add up, nearly. Calibration does reach other ranges and roundings in the end,
and fine-tuning is left out: estimates are within 2 dB of what calibration alone reaches
(tests/benchmarks/analysis.py holds them against it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.calibration.allocation import share_out
from adabm_basicsr.quantization.calibration.calibrate import (
    PROBED,
    representative,
    set_image_thresholds,
    set_ranges,
)
from adabm_basicsr.quantization.calibration.contents import warn_of_empty_images
from adabm_basicsr.quantization.calibration.folding import fold_channel_scales
from adabm_basicsr.quantization.calibration.noise import (
    Errors,
    add_up,
    mean_psnr,
    measure_errors,
    measure_gains,
)
from adabm_basicsr.quantization.calibration.reconstruction import reconstruct
from adabm_basicsr.quantization.calibration.statistics import Statistics, observe, read_batches
from adabm_basicsr.quantization.config import FLOAT_BITS, MIN_BITS
from adabm_basicsr.quantization.engines import KERNEL_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer, QuantizedProduct
from adabm_basicsr.quantization.measures.cost import size_bytes
from adabm_basicsr.quantization.measures.coverage import measure_coverage
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

MEASURED_BITS = (8, 6, 4)
OBSERVED = 16  # images that ranges are measured on
LARGEST = 48  # pixels along a side of what is taken of an image
WANTED = (40, 45, 50)  # dB of self-PSNR that ways to are named
GOOD = 45.0  # dB of self-PSNR at which differences are hard to see
HALF = 0.5  # of the error
MAX_NAMED = 3
JOIN = "sum"  # role of a value that no layer takes as its input


@dataclass
class LayerAnalysis:
    """What one layer costs of the image.

    Attributes:
        name: Its name in the base network, or the place of a value that is quantized for itself.
        role: head, body, trunk end or tail; ``sum`` of a value that no layer takes.
        macs_share: Its share of the network's MACs, 0..1.
        self_psnr: Estimated self-PSNR in dB with this layer alone quantized, input and weight, by
            bits.
        error_share: Its share of the squared error of all layers at the bits of the options, 0..1.
        input_share: Which part of its own error is that of its input, 0..1; the rest is that of
            its weight.
    """

    name: str
    role: str
    macs_share: float
    self_psnr: dict[int, float]
    error_share: float
    input_share: float


@dataclass
class Setting:
    """Bits, and what they would come to.

    Attributes:
        w_bits: Mean bits of weights, as the option has them.
        a_bits: Mean bits of activations.
        self_psnr: Estimated self-PSNR in dB, the mean over images.
        bitops_share: BitOPs as a share of full precision.
        size_share: Size as a share of full precision.
        curve: Which trade-off it is a point of: ``equal`` bits of weights and activations, or
            activations of ``8`` bits. W8A8 ends both.
        knee: Whether it is the knee of its curve: from it on, a bit buys less than it costs, both
            as shares of what the curve spans.
    """

    w_bits: int
    a_bits: int
    self_psnr: float
    bitops_share: float
    size_share: float
    curve: str
    knee: bool = False

    @property
    def options(self) -> str:
        """The line of an option file, below ``network_g``."""
        return f"w_bits: {self.w_bits}, a_bits: {self.a_bits}"


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
        estimator = _Estimator(net, _measure(net, statistics, images, probed))
        settings = _settings(estimator)
        choice = _choice(settings)
        layers = _layers(estimator)
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
    height, width = images.shape[2:]
    top = max(height - LARGEST, 0) // 2
    left = max(width - LARGEST, 0) // 2
    return images[..., top : top + LARGEST, left : left + LARGEST]


def _measure(
    net: QuantizedNetwork, statistics: list[Statistics], images: list[Tensor], probed: Tensor
) -> dict[int, Errors]:
    """What each quantizer costs at `MEASURED_BITS`; ranges are those of calibration."""
    given = _given_bits(net)
    gains = measure_gains(net, probed)
    net.reach(Stage.CALIBRATED)
    found = {}
    for bits in MEASURED_BITS:
        _set_bits(net, dict.fromkeys(given, bits))
        set_ranges(net, statistics)
        set_image_thresholds(net, images)
        if net.config.calibration.reconstruct:
            reconstruct(net, probed, rounding=False)
        found[bits] = measure_errors(net, probed, gains)
    _set_bits(net, given)
    return found


def _given_bits(net: QuantizedNetwork) -> dict[nn.Module, int]:
    """Bits that the options give each quantizer."""
    given: dict[nn.Module, int] = {}
    for activation in net.activation_quantizers().values():
        given[activation] = activation.bits
    for weight in net.weight_quantizers().values():
        given[weight] = weight.bits
    return given


def _set_bits(net: QuantizedNetwork, bits: Mapping[nn.Module, int]) -> None:
    """Set the bits of all quantizers, as far as the engine has them."""
    for activation in net.activation_quantizers().values():
        lowest, highest = activation.bit_range
        activation.bits = min(max(bits[activation], lowest), highest)
    for weight in net.weight_quantizers().values():
        weight.hold_own_bits()
        weight.allocate(min(bits[weight], net.config.arithmetic.max_w_bits))


class _Estimator:
    """Adds up the errors of quantizers, at any bits.

    Args:
        net: The network, its quantizers at the bits of the options.
        errors: What each quantizer costs, by bits.
    """

    def __init__(self, net: QuantizedNetwork, errors: Mapping[int, Errors]) -> None:
        self.net = net
        self.errors = errors
        self.given = _given_bits(net)

    def error(self, quantizer: nn.Module, bits: float) -> list[float]:
        """Squared error of each image, by the nearest bits that were measured."""
        nearest = _nearest(bits)
        factor = 4.0 ** (nearest - bits)
        return [factor * error for error in self.errors[nearest][quantizer]]

    def total(self, bits: Mapping[nn.Module, int]) -> list[float]:
        """Squared error of each image by all quantizers."""
        return add_up(self.error(quantizer, of) for quantizer, of in bits.items())

    def own_bits(self) -> dict[nn.Module, int]:
        """Bits of all quantizers at the options of the network."""
        config = self.net.config
        return self.bits(config.w_bits, config.a_bits)

    def bits(self, w_bits: int, a_bits: int) -> dict[nn.Module, int]:
        """Bits of all quantizers at some mean bits, shared out as the recipe does.

        Those that options or roles pin to their bits keep them.
        """
        net = self.net
        found = dict(self.given)
        inputs: dict[nn.Module, int] = {}
        for activation in net.activation_quantizers().values():
            if not activation.fixed and activation.bits == net.config.a_bits:
                found[activation] = a_bits
                if activation.adaptive:
                    inputs[activation] = 1
        weights: dict[nn.Module, int] = {}
        for name, weight in net.weight_quantizers().items():
            if not net.plan.layers[name].fixed and self.given[weight] == net.config.w_bits:
                found[weight] = w_bits
                weights[weight] = net.layers()[name].get_parameter("weight").numel()
        if net.config.calibration.allocate:
            a_range = net.config.arithmetic.bit_range
            found.update(self._share_out(inputs, a_bits, a_range))
            w_range = (MIN_BITS, net.config.arithmetic.max_w_bits)
            found.update(self._share_out(weights, w_bits, w_range))
        return found

    def _share_out(
        self, sizes: Mapping[nn.Module, int], mean: int, bit_range: tuple[int, int]
    ) -> dict[nn.Module, int]:
        if not sizes:
            return {}
        measured = _nearest(mean)
        errors = {quantizer: sum(self.errors[measured][quantizer]) for quantizer in sizes}
        return share_out(errors, sizes, dict.fromkeys(sizes, measured), mean, bit_range)

    def bitops_share(self, bits: Mapping[nn.Module, int]) -> float:
        """MACs x weight bits x activation bits, as a share of 32 x 32 for all."""
        structure = self.net.structure
        full = structure.total_macs * FLOAT_BITS**2
        spared = 0.0
        for name, layer in self.net.layers().items():
            product = 1
            for quantizer in _operands(layer, name):
                product *= bits.get(quantizer, FLOAT_BITS)
            spared += structure.macs[name] * (FLOAT_BITS**2 - product)
        return 1 - spared / full

    def size_share(self, bits: Mapping[nn.Module, int]) -> float:
        """Size of the network as a share of full precision."""
        _set_bits(self.net, bits)
        share = size_bytes(self.net) / self.net.full_precision_bytes()
        _set_bits(self.net, self.given)
        return share


def _nearest(bits: float) -> int:
    """Of `MEASURED_BITS` the nearest; of two the fewer, whose errors are larger."""
    return min(reversed(MEASURED_BITS), key=lambda measured: abs(measured - bits))


def _operands(layer: QuantizedLayer | QuantizedProduct, name: str) -> list[nn.Module]:
    """Quantizers, or ``nn.Identity``, of the two operands of a layer or product."""
    operands = list(layer.inputs(name).values())
    if isinstance(layer, QuantizedLayer):
        operands.append(layer.weight_quantizer)
    return operands


# Layers


def _layers(estimator: _Estimator) -> list[LayerAnalysis]:
    """A row for each layer, and for each value that is quantized for itself."""
    net = estimator.net
    structure = net.structure
    rest = {quantizer: name for name, quantizer in net.activation_quantizers().items()}
    rows = []
    for name, layer in net.layers().items():
        own = []
        for quantizer in _operands(layer, name):
            # One that several layers share counts at the first of them.
            is_first = rest.pop(quantizer, None) is not None  # type: ignore[call-overload]
            if is_first or isinstance(quantizer, WeightQuantizer):
                own.append(quantizer)
        if own:
            role = structure.roles[name].value
            share = structure.macs[name] / structure.total_macs
            rows.append(_layer(estimator, name, role, share, own))
    for quantizer, name in rest.items():
        rows.append(_layer(estimator, name, JOIN, 0.0, [quantizer]))
    return rows


def _layer(
    estimator: _Estimator, name: str, role: str, macs_share: float, own: Sequence[nn.Module]
) -> LayerAnalysis:
    alone = {}
    for bits in MEASURED_BITS:
        alone[bits] = mean_psnr(add_up(estimator.errors[bits][quantizer] for quantizer in own))
    bits_asked = estimator.own_bits()
    total = sum(estimator.total(bits_asked))
    of_input = 0.0
    of_all = 0.0
    for quantizer in own:
        error = sum(estimator.error(quantizer, bits_asked[quantizer]))
        of_all += error
        if isinstance(quantizer, ActivationQuantizer):
            of_input += error
    return LayerAnalysis(
        name=name,
        role=role,
        macs_share=macs_share,
        self_psnr=alone,
        error_share=_share(of_all, total),
        input_share=_share(of_input, of_all),
    )


def _share(part: float, whole: float) -> float:
    if not whole:
        return 0.0
    return part / whole


# Bits against quality


def _settings(estimator: _Estimator) -> list[Setting]:
    """Both trade-off curves, as far as the engine goes: first that of activations of 8 bits."""
    arithmetic = estimator.net.config.arithmetic
    most = arithmetic.max_w_bits
    quantizers = estimator.given
    has_inputs = any(isinstance(quantizer, ActivationQuantizer) for quantizer in quantizers)
    eight = KERNEL_BITS if has_inputs else FLOAT_BITS
    curves = {"8": [(w_bits, eight) for w_bits in range(MIN_BITS, most + 1)]}
    fewest = max(arithmetic.min_a_bits, arithmetic.bit_range[0])
    if fewest < KERNEL_BITS and has_inputs:
        curves["equal"] = [(bits, bits) for bits in range(fewest, KERNEL_BITS)]
    settings = []
    for curve, pairs in curves.items():
        points = []
        for w_bits, a_bits in pairs:
            bits = estimator.bits(w_bits, a_bits)
            point = Setting(
                w_bits=w_bits,
                a_bits=a_bits,
                self_psnr=mean_psnr(estimator.total(bits)),
                bitops_share=estimator.bitops_share(bits),
                size_share=estimator.size_share(bits),
                curve=curve,
            )
            points.append(point)
        settings += points
    _mark_knee([setting for setting in settings if setting.curve == "8"])
    if "equal" in curves:
        end = settings[len(curves["8"]) - 1]
        _mark_knee([setting for setting in settings if setting.curve == "equal"], end)
    return settings


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
