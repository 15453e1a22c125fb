"""What the quantizers of activations see of the calibration images, in full precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.calibration.observers import FIND_RANGE, Observer, moving_average
from adabm_basicsr.quantization.checks import check_finite
from adabm_basicsr.quantization.distributed import map_shared
from adabm_basicsr.quantization.measures.memory import pixels_of
from adabm_basicsr.quantization.measures.psnr import HIGHEST_PIXEL
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import MIN_WIDTH

# Of a batch of LR images. Memory is that of one part.
PIXELS_AT_ONCE = 1 << 14
PIXEL_TOLERANCE = 1e-3  # of the distance of two pixel values


class ChannelEnds(NamedTuple):
    """What the input channels of a layer range over.

    Attributes:
        lower: Smallest value of each channel, ``(C_in,)``.
        upper: Largest value of each channel, ``(C_in,)``.
    """

    lower: Tensor
    upper: Tensor


class Seen(NamedTuple):
    """What a quantizer saw of a part of a batch, each time that its layer ran.

    Attributes:
        values: As many values as the observer keeps, each ``(N,)``.
        deviations: Standard deviation of each sample, each ``(B,)``; of adaptive layers.
        channels: What the channels range over, of layers whose channels have scales.
        pixels: Whether all values are an image's pixels, see `_are_pixels`.
    """

    values: list[Tensor]
    deviations: list[Tensor]
    channels: ChannelEnds | None
    pixels: bool = True


class Statistics:
    """Range and sensitivity of what one quantizer sees over the calibration batches.

    Args:
        quantizer: The quantizer.
        observer: How its range is found.
        relative_sensitivity: Whether sensitivity is measured in units of the layer's own range.
        holds_all: Whether the range holds what was seen in each batch, rather than being an average
            over batches.

    Attributes:
        channels: What the channels range over, of all images.
        pixels: Whether all that was seen are an image's pixels.
    """

    def __init__(
        self,
        quantizer: ActivationQuantizer,
        observer: Observer,
        relative_sensitivity: bool,
        holds_all: bool = False,
    ) -> None:
        self.quantizer = quantizer
        self.observer = observer
        self.relative_sensitivity = relative_sensitivity
        self.holds_all = holds_all
        self.channels: ChannelEnds | None = None
        self.pixels = True
        self._ranges: list[Tensor] = []
        self._sensitivities: list[Tensor] = []
        self._seen = Seen([], [], None)

    def see(self, quantizer: ActivationQuantizer, args: tuple[Tensor, ...]) -> None:
        """Hook that is called before the quantizer: note what comes in."""
        x = args[0]
        if not x.numel():
            # A selection of which nothing was taken.
            return
        self._seen.values.append(self.observer.keep(x))
        if self.pixels and self._seen.pixels:
            self._seen = self._seen._replace(pixels=_are_pixels(x))
        if quantizer.channel_scale is not None:
            ends = _channel_ends(x, quantizer.channel_scale)
            channels = _widest(self._seen.channels, ends)
            self._seen = self._seen._replace(channels=channels)
        if quantizer.adaptive:
            self._seen.deviations.append(_deviations(x))

    def take(self) -> Seen:
        """What was seen since the last call."""
        seen = self._seen
        self._seen = Seen([], [], None)
        return seen

    def end_batch(self, parts: Sequence[Seen]) -> None:
        """Put together what was seen of the parts of a batch.

        A layer that ran twice gets the range that suits both times.
        """
        values = []
        deviations = []
        for seen in parts:
            values.extend(seen.values)
            deviations.extend(seen.deviations)
            self.channels = _widest(self.channels, seen.channels)
            self.pixels = self.pixels and seen.pixels
        if not values:
            self.pixels = False
            return
        ends = self.observer.find_range(torch.cat(values), self.quantizer)
        self._ranges.append(ends)
        if self.quantizer.adaptive:
            sensitivity = torch.cat(deviations).mean()
            if self.relative_sensitivity:
                # How coarse the grid is against what it resolves, at any scale of the layer.
                width = ends[1] - ends[0]
                sensitivity = width / sensitivity.clamp(min=MIN_WIDTH)
            self._sensitivities.append(sensitivity)

    def range(self) -> Tensor | None:
        """``[lower, upper]`` over the batches: their moving average, or what holds all.

        Returns:
            Shape ``(2,)``; None where the layer stands in a branch that no image took.
        """
        if not self._ranges:
            return None
        if self.holds_all:
            lower, upper = torch.stack(self._ranges).unbind(1)
            return torch.stack([lower.min(), upper.max()])
        return moving_average(self._ranges)

    def sensitivity(self) -> Tensor | None:
        """Mean over the batches of the standard deviation of a sample of the input.

        Or of the width of the range in such deviations, where sensitivity is relative.

        Returns:
            Scalar; None of layers that aren't adaptive, or never ran.
        """
        if not self._sensitivities:
            return None
        return torch.stack(self._sensitivities).mean()


def read_batches(batches: Iterable[Tensor]) -> list[Tensor]:
    """All batches of calibration images.

    Raises:
        AdaBMError: There is no batch, or one holds values that are not finite.
    """
    images = list(batches)
    if not images:
        raise AdaBMError("calibration needs at least one batch of images, and got none")
    for batch in images:
        check_finite(batch, "a calibration image")
    return images


def observe(
    net: QuantizedNetwork, batches: Iterable[Tensor]
) -> tuple[list[Statistics], list[Tensor]]:
    """Run the full-precision network on all batches and watch what its quantizers see.

    Args:
        net: The quantized network.
        batches: Batches of LR images, each ``(B, C, H, W)`` in 0..1.

    Returns:
        Statistics of the activation quantizers in execution order, and the batches.

    Raises:
        AdaBMError: There is no batch, or one holds values that are not finite.
    """
    calibration = net.config.calibration
    observer = FIND_RANGE[net.config.observer or calibration.observer]
    images = read_batches(batches)
    statistics = []
    hooks = []
    for quantizer in net.activation_quantizers().values():
        observed = Statistics(
            quantizer,
            observer,
            calibration.relative_sensitivity,
            # As the scales of channels do, where there are such.
            holds_all=net.config.folds_channel_scales,
        )
        statistics.append(observed)
        hooks.append(quantizer.register_forward_pre_hook(observed.see))
    try:
        with net.full_precision():
            for batch in images:
                _observe_batch(net, statistics, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return statistics, images


def _observe_batch(net: QuantizedNetwork, statistics: list[Statistics], batch: Tensor) -> None:
    # How a batch is split doesn't depend on who shares it, so nor do results.
    images_at_once = max(PIXELS_AT_ONCE // pixels_of(batch[0]), 1)
    parts = batch.split(images_at_once)
    seen_of_parts = map_shared(partial(_observe_part, net, statistics), parts, batch.device)
    seen_by_quantizers = zip(*seen_of_parts, strict=True)
    for observed, seen in zip(statistics, seen_by_quantizers, strict=True):
        observed.end_batch(seen)


def _observe_part(net: QuantizedNetwork, statistics: list[Statistics], part: Tensor) -> list[Seen]:
    """What each quantizer sees of a part of a batch."""
    check_finite(net(part), "the full-precision network's output")
    return [observed.take() for observed in statistics]


def _deviations(x: Tensor) -> Tensor:
    """Standard deviation of each sample over all its values, unbiased: ``(B,)``."""
    values = x.flatten(1)
    # A single value, a pooled one say, has the deviation 0.
    correction = min(values.shape[1] - 1, 1)
    return values.std(1, correction=correction)


def _are_pixels(x: Tensor) -> bool:
    """Whether values are pixels of 8 bits in 0..1, as images have them: not just zeros and ones."""
    levels = x * HIGHEST_PIXEL
    whole = levels.round()
    lowest, highest = torch.aminmax(whole)
    if lowest < 0 or highest > HIGHEST_PIXEL:
        return False
    if (levels - whole).abs().max() > PIXEL_TOLERANCE:
        return False
    return bool((whole % HIGHEST_PIXEL).any())


def _channel_ends(x: Tensor, channel_scale: Tensor) -> ChannelEnds:
    """Smallest and largest value of each channel; channels lie where ``channel_scale`` has them."""
    axes = []
    for axis in range(-x.dim(), 0):
        is_before_channels = axis < -channel_scale.dim()
        if is_before_channels or channel_scale.shape[axis] == 1:
            axes.append(axis)
    # Flattened, as a single channel leaves no axis that isn't reduced.
    return ChannelEnds(x.amin(axes).flatten(), x.amax(axes).flatten())


def _widest(first: ChannelEnds | None, second: ChannelEnds | None) -> ChannelEnds | None:
    if first is None:
        return second
    if second is None:
        return first
    lower = torch.minimum(first.lower, second.lower)
    upper = torch.maximum(first.upper, second.upper)
    return ChannelEnds(lower, upper)
