"""What rounding the channels of layers does to the image, as a function of the channels' scales.

Rounding errs by a uniform number of the width of a grid's step, independently from value to value,
so what it does to the image adds up in squares. A channel's step follows from the range that all
channels of the tensor share once each is divided by its scale; how much an error of a channel
changes the image is found by gradients of random sums of its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adabm_basicsr.quantization.engines import ALL_SUMS
from adabm_basicsr.quantization.gradients import gradients_of_overwritten, gradients_work
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import MIN_WIDTH
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer
from adabm_basicsr.quantization.structure.channels import LayerChannels, layer_type
from adabm_basicsr.quantization.structure.tracing import first_argument

SEED = 0
WITHOUT_GRADIENTS = "the channels of all layers count alike where their scales are chosen"


@dataclass
class Values:
    """What the channels of a layer's input or output are on all images.

    Attributes:
        lower: Smallest value of each channel, at most 0, ``(C,)``.
        upper: Largest value, at least 0, ``(C,)``.
        power: Mean square, ``(C,)``.
        gain: Squared error of the image per squared error of the channel's values, ``(C,)``.
    """

    lower: Tensor
    upper: Tensor
    power: Tensor
    gain: Tensor

    @classmethod
    def of(cls, channels: Tensor) -> Values:
        """Of one image's channels, ``(C, N)``; gradients, which come later, add to the gain."""
        return cls(
            lower=channels.amin(1).clamp(max=0),
            upper=channels.amax(1).clamp(min=0),
            power=channels.square().mean(1),
            gain=torch.zeros_like(channels[:, 0]),
        )

    @classmethod
    def together(cls, seen: Sequence[Values]) -> Values:
        """Of all images."""
        return cls(
            lower=torch.stack([values.lower for values in seen]).amin(0),
            upper=torch.stack([values.upper for values in seen]).amax(0),
            power=torch.stack([values.power for values in seen]).mean(0),
            gain=torch.stack([values.gain for values in seen]).sum(0),
        )

    def width(self, scales: Tensor, has_zero_points: bool) -> Tensor:
        """Width of the range that holds all channels, each divided by its scale; a scalar."""
        lower = (self.lower / scales).amin()
        upper = (self.upper / scales).amax()
        if has_zero_points:
            return upper - lower
        return 2 * torch.maximum(upper, -lower)


class LayerValues(NamedTuple):
    """What the channels of a layer are.

    Attributes:
        inputs: Of its input, which its quantizer rounds.
        outputs: Of its output, which errors of the weights change.
    """

    inputs: Values
    outputs: Values


@dataclass
class _Seen:
    """What a layer takes and makes, each time that it runs."""

    inputs: list[Values] = field(default_factory=list)
    outputs: list[Values] = field(default_factory=list)


def observe_channels(net: QuantizedNetwork, images: Tensor) -> dict[Any, LayerValues]:
    """What the channels of layers are in full precision, and what their errors do to the image.

    Args:
        net: The quantized network, in full precision.
        images: LR images, ``(B, C, H, W)`` in 0..1; they are run one by one.

    Returns:
        Of each layer whose channels can be scaled and that ran. Where the network has no gradients,
        an error counts as a share of the layer's own range.
    """

    def gains_are_found() -> bool:
        for seen in _observe(net, images[:1], with_gains=True).values():
            if any(values.gain.any() for values in seen.inputs):
                return True
        return False

    with_gains = gradients_work(net, gains_are_found, WITHOUT_GRADIENTS)
    noted = _observe(net, images, with_gains)
    observed = {}
    for layer, seen in noted.items():
        if seen.inputs and seen.outputs:
            inputs = Values.together(seen.inputs)
            outputs = Values.together(seen.outputs)
            observed[layer] = LayerValues(inputs, outputs)
    if not with_gains:
        for of_layer in observed.values():
            for values in of_layer:
                width = values.width(torch.ones_like(values.upper), has_zero_points=True)
                values.gain += width.clamp(min=MIN_WIDTH) ** -2
    return observed


def _observe(net: QuantizedNetwork, images: Tensor, with_gains: bool) -> dict[Any, _Seen]:
    generator = torch.Generator().manual_seed(SEED)
    with _watched(net) as observed:
        for image in images.split(1):
            with torch.set_grad_enabled(with_gains), gradients_of_overwritten(net):
                source = image.clone().requires_grad_(with_gains)
                # A layer may take the image itself.
                output = net(source.clone())
                if output.requires_grad:
                    probe = torch.randn(output.shape, generator=generator).to(output)
                    torch.autograd.grad(output, source, probe, allow_unused=True)
    return observed


@contextmanager
def _watched(net: QuantizedNetwork) -> Iterator[dict[Any, _Seen]]:
    """Context in which it is noted what layers take and make."""
    observed: dict[Any, _Seen] = {}
    handles = []
    # Whether whoever takes a value takes it as the layer's quantizer rounds it.
    rounds_for_all = net.config.integers_of.sums == ALL_SUMS

    def before(layer: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        x = first_argument(args, kwargs)
        if not rounds_for_all:
            # Apart from what else the network does with it, in a skip connection say.
            x = x.view_as(x)
        _note(x, layer.output_axis, observed[layer].inputs)
        if args:
            return (x, *args[1:]), kwargs
        return args, {**kwargs, "input": x}

    def after(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        _note(output, layer.output_axis, observed[layer].outputs)

    for layer in net.layers().values():
        if layer_type(layer) is not None:
            observed[layer] = _Seen()
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.register_forward_hook(after))
    try:
        yield observed
    finally:
        for handle in handles:
            handle.remove()


def _note(x: Tensor, axis: int, seen: list[Values]) -> None:
    """Note a tensor's channels now, and their gain when its gradient comes."""
    if not x.numel():
        # A selection of which nothing was taken.
        return
    with torch.no_grad():
        values = Values.of(_by_channel(x, axis))
    seen.append(values)

    def take(gradient: Tensor) -> Tensor:
        # Deviations of channels that are zero have no gradient.
        finite = gradient.nan_to_num(nan=0, posinf=0, neginf=0)
        values.gain += _by_channel(finite, axis).square().sum(1)
        return finite

    if x.requires_grad:
        x.register_hook(take)


def _by_channel(x: Tensor, axis: int) -> Tensor:
    """``x`` as ``(C, N)``."""
    return x.transpose(0, axis).flatten(1)


# Noise of scales


class Noise:
    """Squared error of the image, up to a factor, by the scales of classes of channels.

    Args:
        net: The quantized network.
        channels: The class of each channel of its layers; -1 has the scale 1.
        observed: What the channels are.
    """

    def __init__(
        self,
        net: QuantizedNetwork,
        channels: Mapping[Any, LayerChannels],
        observed: Mapping[Any, LayerValues],
    ) -> None:
        self.has_zero_points = net.config.integers_of.zero_points
        self._layers = []
        for layer, of_layer in channels.items():
            if layer in observed:
                self._layers.append((layer, of_layer, observed[layer]))

    def __call__(self, scales: Tensor) -> Tensor:
        """The noise; a scalar with a gradient to ``scales``.

        Args:
            scales: Scale of each class, ``(N + 1,)``; the last one, 1, is that of fixed channels.
        """
        total = scales.new_zeros(())
        for layer, of_layer, values in self._layers:
            of_inputs = scales[of_layer.inputs]
            if isinstance(layer.input_quantizer, ActivationQuantizer):
                bits = layer.input_quantizer.bits
                total = total + self._of_activation(values.inputs, of_inputs, bits)
            if layer.output_quantizer is not None:
                # Groups of a transposed convolution share rows.
                repeats = len(values.outputs.gain) // len(of_layer.outputs)
                of_outputs = scales[of_layer.outputs].repeat(repeats)
                bits = layer.output_quantizer.bits
                total = total + self._of_activation(values.outputs, of_outputs, bits)
            if isinstance(layer.weight_quantizer, WeightQuantizer):
                total = total + _noise_of_weight(layer, values, of_inputs)
        return total

    def _of_activation(self, values: Values, scales: Tensor, bits: int) -> Tensor:
        step = values.width(scales, self.has_zero_points) / (2**bits - 1)
        return step.square() * (values.gain * scales.square()).sum()


def _noise_of_weight(layer: Any, values: LayerValues, scales: Tensor) -> Tensor:
    """Of the weights' rounding; each output channel has a step of its own."""
    _, of_columns = layer.channel_views(scales)
    weight = layer.weight.detach() * of_columns
    rows = weight.transpose(0, layer.weight_axis).flatten(1)
    steps = 2 * rows.abs().amax(1) / (2**layer.weight_quantizer.bits - 2)
    gains = values.outputs.gain.view(-1, len(rows)).sum(0)
    power = (values.inputs.power / scales.square()).mean() * rows.shape[1]
    return power * (steps.square() * gains).sum()
