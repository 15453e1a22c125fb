"""Step 1: ranges, layer factors and image thresholds from full-precision activations."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.adaptive import ActivationQuantizer, WeightQuantizer, image_complexity
from adabm_basicsr.quantization.config import FIXED_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.observers import OBSERVERS, MovingAverage, search_weight_range

LAYER_PERCENTILES = (0.3, 0.7)
IMAGE_PERCENTILES = (0.1, 0.9)


class _LayerStatistics:
    """Range and sensitivity of one layer's input over the calibration batches."""

    def __init__(self, layer: QuantizedLayer, observer: str) -> None:
        self.quantizer = layer.input_quantizer
        self.observe_range = OBSERVERS[observer]
        self.range = MovingAverage()
        self.deviations: list[Tensor] = []

    def __call__(self, layer: QuantizedLayer, args: tuple) -> None:
        x = args[0]
        self.range.update(self.observe_range(x, self.quantizer.bits))
        if self.quantizer.adaptive:
            self.deviations.append(x.flatten(1).std(1).mean())

    def sensitivity(self) -> Tensor:
        return torch.stack(self.deviations).mean()


@torch.no_grad()
def calibrate(net: QuantizedNetwork, batches: Iterable[Tensor]) -> QuantizedNetwork:
    """Set every range, layer factor and image threshold of ``net`` from low-resolution images.

    Args:
        net: The quantized network; changed in place.
        batches: Batches of LR images, each ``(B, C, H, W)`` in 0..1; the paper takes 16 patches of 96x96 for x4.

    Returns:
        ``net``, ready to infer and to be fine-tuned.

    Raises:
        AdaBMError: There is no batch, or one holds values that are not finite.
    """
    statistics = {
        layer: _LayerStatistics(layer, net.config.observer or net.config.preset.observer)
        for layer in net.layers().values()
        if isinstance(layer.input_quantizer, ActivationQuantizer)
    }
    thresholds = MovingAverage()
    hooks = [layer.register_forward_pre_hook(observe) for layer, observe in statistics.items()]
    try:
        with net.full_precision():
            for batch in batches:
                check_finite(batch, "a calibration image")
                check_finite(net(batch), "the full-precision network's output")
                thresholds.update(torch.quantile(image_complexity(batch), batch.new_tensor(IMAGE_PERCENTILES)))
    finally:
        for hook in hooks:
            hook.remove()
    if thresholds.value is None:
        raise AdaBMError("calibration needs at least one batch of images, and got none")
    _set_activation_ranges(statistics)
    _set_weight_ranges(net)
    _set_bit_mappings(net, statistics, thresholds.value)
    net.stage.fill_(Stage.CALIBRATED)
    return net


def check_finite(x: Tensor, what: str) -> None:
    """Raise `AdaBMError` if ``x`` holds NaN or infinity; ``what`` names it."""
    if not torch.isfinite(x).all():
        raise AdaBMError(f"{what} holds NaN or infinite values")


def _set_activation_ranges(statistics: dict[QuantizedLayer, _LayerStatistics]) -> None:
    for observed in statistics.values():
        if observed.range.value is not None:  # None: the layer stands in a branch that no calibration image took
            observed.quantizer.lower.copy_(observed.range.value[:1])
            observed.quantizer.upper.copy_(observed.range.value[1:])


def _set_weight_ranges(net: QuantizedNetwork) -> None:
    for name, layer in net.layers().items():
        if isinstance(layer.weight_quantizer, WeightQuantizer):
            bits = layer.weight_quantizer.bits
            if net.config.recipe == "paper" and net.plan.layers[name].fixed and bits == FIXED_BITS:
                bits = net.config.w_bits  # as published: head and tail are searched at the body's bits
            layer.weight_quantizer.upper.copy_(search_weight_range(layer.weight, bits))


def _set_bit_mappings(
    net: QuantizedNetwork, statistics: dict[QuantizedLayer, _LayerStatistics], thresholds: Tensor
) -> None:
    if net.image_mapping is None:
        return
    net.image_mapping.lower.copy_(thresholds[:1])
    net.image_mapping.upper.copy_(thresholds[1:])
    observed = [s for s in statistics.values() if s.deviations]
    if not observed:
        return
    sensitivities = torch.stack([s.sensitivity() for s in observed])
    low, high = torch.quantile(sensitivities, sensitivities.new_tensor(LAYER_PERCENTILES))
    for s, sensitivity in zip(observed, sensitivities):
        s.quantizer.layer_factor.fill_(float(sensitivity > high) - float(sensitivity < low))
