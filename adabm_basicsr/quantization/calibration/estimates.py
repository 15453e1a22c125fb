"""What each quantizer of a network costs of the image, and what any bits would come to.

`measure` finds what the image loses by each quantizer alone at 8, 6 and 4 bits. `Estimator` adds up
these losses for whatever bits the quantizers may have (see `noise`): the squared errors of
independent roundings add up, nearly. Calibration does reach other ranges and roundings in the end,
and fine-tuning is left out: estimates are within 2 dB of what calibration alone reaches
(tests/benchmarks/analysis.py holds them against it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from adabm_basicsr.quantization.calibration.allocation import share_out
from adabm_basicsr.quantization.calibration.calibrate import set_image_thresholds, set_ranges
from adabm_basicsr.quantization.calibration.noise import (
    Errors,
    add_up,
    mean_psnr,
    measure_errors,
    measure_gains,
)
from adabm_basicsr.quantization.calibration.reconstruction import reconstruct
from adabm_basicsr.quantization.calibration.statistics import Statistics
from adabm_basicsr.quantization.config import FLOAT_BITS, MIN_BITS
from adabm_basicsr.quantization.engines import KERNEL_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer, QuantizedProduct
from adabm_basicsr.quantization.measures.cost import size_bytes
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

MEASURED_BITS = (8, 6, 4)
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


def measure(
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


class Estimator:
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


def layers_of(estimator: Estimator) -> list[LayerAnalysis]:
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
    estimator: Estimator, name: str, role: str, macs_share: float, own: Sequence[nn.Module]
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


def settings_of(estimator: Estimator) -> list[Setting]:
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
        for w_bits, a_bits in pairs:
            bits = estimator.bits(w_bits, a_bits)
            setting = Setting(
                w_bits=w_bits,
                a_bits=a_bits,
                self_psnr=mean_psnr(estimator.total(bits)),
                bitops_share=estimator.bitops_share(bits),
                size_share=estimator.size_share(bits),
                curve=curve,
            )
            settings.append(setting)
    return settings
