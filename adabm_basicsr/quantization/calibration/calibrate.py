"""Step 1: ranges, layer factors and image thresholds from full-precision activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.calibration.allocation import (
    assign,
    base_bits,
    measure_sensitivities,
)
from adabm_basicsr.quantization.calibration.budget import budgets
from adabm_basicsr.quantization.calibration.equalisation import equalise
from adabm_basicsr.quantization.calibration.observers import (
    OBSERVERS,
    MovingAverage,
    search_weight_range,
)
from adabm_basicsr.quantization.calibration.reconstruction import reconstruct
from adabm_basicsr.quantization.checks import check_finite
from adabm_basicsr.quantization.config import FIXED_BITS
from adabm_basicsr.quantization.distributed import copy_from_first, map_shared
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import MIN_WIDTH

LAYER_PERCENTILES = (0.3, 0.7)
SHOWN = 16  # images that layers are reconstructed on
PROBED = 8  # images that sensitivities are measured on
PIXELS_AT_ONCE = 1 << 14  # of a batch of LR images
STARTS = {
    "lower": 0, "upper": 1, "layer_factor": 0, "level_ranges": 1, "channel_scale": 1, "channel_shift": 0,
    "correction": 0, "bias_correction": 0,
}  # fmt: skip


class _Seen(NamedTuple):
    """What a quantizer saw of a part of a batch, each time that its layer ran."""

    values: list[Tensor]  # as many as the observer keeps
    deviations: list[Tensor]  # of each sample
    channels: tuple[Tensor, Tensor] | None  # smallest and largest value of each input channel


class _Statistics:
    """Range and sensitivity of what one quantizer sees over the calibration batches."""

    def __init__(self, quantizer: ActivationQuantizer, observer: str, scale_free: bool) -> None:
        self.quantizer = quantizer
        self.observer = OBSERVERS[observer]
        self.scale_free = scale_free
        self.range = MovingAverage()
        self.sensitivities: list[Tensor] = []
        self.channels: tuple[Tensor, Tensor] | None = None  # of all images
        self._seen = _Seen([], [], None)

    def __call__(self, quantizer: ActivationQuantizer, args: tuple) -> None:
        x = args[0]
        if not x.numel():  # a selection of which nothing was taken
            return
        self._seen.values.append(self.observer.keep(x))
        if quantizer.channel_scale is not None:
            channels = _widest(self._seen.channels, _channel_ends(x, quantizer.channel_scale))
            self._seen = self._seen._replace(channels=channels)
        if quantizer.adaptive:
            values = x.flatten(1)  # a single value has no deviation: a pooled one, say
            self._seen.deviations.append(values.std(1, correction=min(values.shape[1] - 1, 1)))

    def take(self) -> _Seen:
        """What was seen since the last call."""
        seen, self._seen = self._seen, _Seen([], [], None)
        return seen

    def end_batch(self, parts: Sequence[_Seen]) -> None:
        """Put together what was seen of a batch; a layer that ran twice gets the range that suits both."""
        values = [kept for seen in parts for kept in seen.values]
        if not values:
            return
        found = self.observer.find_range(torch.cat(values), self.quantizer)
        self.range.update(found)
        for seen in parts:
            self.channels = _widest(self.channels, seen.channels)
        if self.quantizer.adaptive:
            deviation = torch.cat(
                [deviations for seen in parts for deviations in seen.deviations]
            ).mean()
            # How coarse the steps are against what they resolve, whatever the scale of the layer.
            relative = (found[1] - found[0]) / deviation.clamp(min=MIN_WIDTH)
            self.sensitivities.append(relative if self.scale_free else deviation)


def _channel_ends(x: Tensor, channel_scale: Tensor) -> tuple[Tensor, Tensor]:
    axes = [
        axis
        for axis in range(-x.dim(), 0)
        if axis < -channel_scale.dim() or channel_scale.shape[axis] == 1
    ]
    return x.amin(axes).flatten(), x.amax(axes).flatten()  # of a single channel too


def _widest(
    first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    if first is None or second is None:
        return first or second
    return torch.minimum(first[0], second[0]), torch.maximum(first[1], second[1])


@torch.no_grad()
def calibrate(net: QuantizedNetwork, batches: Iterable[Tensor]) -> QuantizedNetwork:
    """Set every range, layer factor and image threshold of ``net`` from low-resolution images.

    Several processes (torch.distributed) are each to be given the same batches. They share what is done image by image;
    layers are reconstructed in each, as rounding them depends on the last digit of what they see.

    Args:
        net: The quantized network; changed in place.
        batches: Batches of LR images, each ``(B, C, H, W)`` in 0..1; the paper takes 16 patches of 96x96 for x4.

    Returns:
        ``net``, ready to infer and to be fine-tuned.

    Raises:
        AdaBMError: There is no batch, or one holds values that are not finite.
    """
    with net.lock:
        return _calibrate(net, batches)


def _calibrate(net: QuantizedNetwork, batches: Iterable[Tensor]) -> QuantizedNetwork:
    observer, scale_free = (
        net.config.observer or net.config.calibration.observer,
        net.config.calibration.relative_sensitivity,
    )
    statistics = [
        _Statistics(q, observer, scale_free) for q in net.activation_quantizers().values()
    ]
    images: list[Tensor] = []
    hooks = [observed.quantizer.register_forward_pre_hook(observed) for observed in statistics]
    try:
        with net.full_precision():
            for batch in batches:
                check_finite(batch, "a calibration image")
                # Memory is that of one part. How a batch is split doesn't depend on who shares it, so nor do results.
                parts = batch.split(max(PIXELS_AT_ONCE // batch[0, 0].numel(), 1))
                seen = map_shared(partial(_observe, net, statistics), parts, batch.device)
                for observed, of_parts in zip(statistics, zip(*seen)):
                    observed.end_batch(of_parts)
                images.append(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not images:
        raise AdaBMError("calibration needs at least one batch of images, and got none")
    _reset(net)
    _set_layer_factors(statistics)  # before ranges: which form these take depends on the bits
    _set_ranges(net, statistics)
    _set_image_mapping(net, images)
    net.stage.fill_(Stage.CALIBRATED)
    if net.config.calibration.allocate:
        _allocate(net, statistics, images)
    elif net.config.calibration.reconstruct:
        reconstruct(net, representative(images))
    copy_from_first(net)
    return net


def _reset(net: QuantizedNetwork) -> None:
    """Forget what an earlier calibration, and fine-tuning after it, found."""
    weights = net.weight_quantizers().values()
    for quantizer in [*net.activation_quantizers().values(), *weights]:
        for name, start in STARTS.items():
            if getattr(quantizer, name, None) is not None:
                getattr(quantizer, name).fill_(start)
    for quantizer in weights:
        if quantizer.allocated is not None:
            quantizer.allocate()


def _observe(net: QuantizedNetwork, statistics: list[_Statistics], part: Tensor) -> list[_Seen]:
    """Run a part of a batch and return what each quantizer saw of it."""
    check_finite(net(part), "the full-precision network's output")
    return [observed.take() for observed in statistics]


def _allocate(net: QuantizedNetwork, statistics: list[_Statistics], images: list[Tensor]) -> None:
    """Share bits out by sensitivity and fit everything to them, again until a target is met."""
    shown, probed = representative(images), representative(images, PROBED)
    added = 0.0 if net.config.target else _added_bits(net, images)  # a target counts what is used
    if net.config.calibration.reconstruct:
        reconstruct(net, probed, rounding=False)
    found = measure_sensitivities(net, probed)
    for a_mean, w_mean in budgets(net, found, shown):
        assign(net, found, a_mean - added, w_mean)
        _set_ranges(net, statistics)
        if net.config.calibration.reconstruct:
            reconstruct(net, shown)


def representative(batches: Sequence[Tensor], count: int = SHOWN) -> Tensor:
    """About ``count`` images of the first batch's size, evenly chosen from simple to complex: ``(B, C, H, W)``."""
    images = torch.cat([batch for batch in batches if batch.shape[1:] == batches[0].shape[1:]])
    order = image_complexity(images).argsort()
    chosen = torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()
    return images[order[chosen.to(order.device)]]


def _set_ranges(net: QuantizedNetwork, statistics: list[_Statistics]) -> None:
    _set_activation_ranges(statistics)
    _equalise(net, statistics)
    _set_weight_ranges(net)


def _set_activation_ranges(statistics: list[_Statistics]) -> None:
    for observed in statistics:
        if (
            observed.range.value is not None
        ):  # None: the layer stands in a branch that no calibration image took
            observed.quantizer.lower.copy_(observed.range.value[:1])
            observed.quantizer.upper.copy_(observed.range.value[1:])


def _equalise(net: QuantizedNetwork, statistics: list[_Statistics]) -> None:
    seen = {
        observed.quantizer: observed.channels
        for observed in statistics
        if observed.channels is not None
    }
    for layer in net.layers().values():
        if channels := seen.get(getattr(layer, "input_quantizer", None)):
            equalise(layer, *channels)


def _set_weight_ranges(net: QuantizedNetwork) -> None:
    for name, quantizer in net.weight_quantizers().items():
        bits = quantizer.bits
        if (
            net.config.calibration.outer_ranges_at_base_bits
            and net.plan.layers[name].fixed
            and bits == FIXED_BITS
        ):
            bits = net.config.w_bits  # as published: head and tail are searched at the body's bits
        weight = net.network.get_submodule(name).weight
        if quantizer.channel_scale is not None:
            weight = weight * quantizer.channel_scale
        upper = search_weight_range(weight, quantizer, bits)
        quantizer.upper.copy_(
            upper.bfloat16() if quantizer.integer else upper
        )  # packed files keep two bytes of it


def _set_image_mapping(net: QuantizedNetwork, batches: list[Tensor]) -> None:
    """Thresholds at percentiles of complexity: of all images, or as published a moving average over the batches."""
    if net.image_mapping is None:
        return
    complexities = [image_complexity(batch) for batch in batches]
    thresholds, shares = (
        MovingAverage(),
        batches[0].new_tensor(net.config.calibration.image_percentiles),
    )
    for complexity in (
        [torch.cat(complexities)] if net.config.calibration.pooled_thresholds else complexities
    ):
        thresholds.update(torch.quantile(complexity, shares))
    # Bits that simple images spare are of no use where all layers have the most already.
    nothing_to_spare = (
        net.config.arithmetic.own_bits and base_bits(net) >= net.config.arithmetic.bit_range[1]
    )
    net.image_mapping.lower.copy_(
        0 * thresholds.value[:1] if nothing_to_spare else thresholds.value[:1]
    )
    net.image_mapping.upper.copy_(thresholds.value[1:])


def _set_layer_factors(statistics: list[_Statistics]) -> None:
    observed = [s for s in statistics if s.sensitivities]
    if not observed:
        return
    sensitivities = torch.stack([torch.stack(s.sensitivities).mean() for s in observed])
    low, high = torch.quantile(sensitivities, sensitivities.new_tensor(LAYER_PERCENTILES))
    for s, sensitivity in zip(observed, sensitivities):
        # Where no layer can have more bits than the base, none has to give any away.
        if s.quantizer.bits < s.quantizer.bit_range[1]:
            s.quantizer.layer_factor.fill_(float(sensitivity > high) - float(sensitivity < low))


def _added_bits(net: QuantizedNetwork, batches: list[Tensor]) -> float:
    """Bits that the image mapping adds to the calibration images on average.

    What it takes off instead is left unused: sets with fewer simple images would use more bits than were asked for.
    """
    if net.image_mapping is None:
        return 0.0
    levels = torch.cat([net.image_mapping(batch) for batch in batches])
    return max(float(levels.clamp(*net.config.arithmetic.image_bits).mean()), 0.0)
