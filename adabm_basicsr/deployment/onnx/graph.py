"""Quantizers as the ONNX operators that runtimes execute as integers.

::

    input:   x -> QuantizeLinear -> Clip -> DequantizeLinear -> layer
    weight:  integers -> DequantizeLinear(a scale per output channel) -> layer

Where each input channel has a zero point of its own, it is clipped to its own range before, and all
are then quantized with the largest zero point: integers that differ by a constant stand for the
same value. What differs between image classes is a table with a row for each; the graph computes
the level, the class's index, which picks the row. docs/integers.md says why in these forms.

Modules of this file replace the quantizers of a frozen network while it is traced. The names of
their buffers are names of tensors in exported files, where a scale is called ``step``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import ExportError
from adabm_basicsr.quantization.checks import IMAGE_AXES
from adabm_basicsr.quantization.layers import QuantizedLayer, QuantizedProduct
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer, shifted
from adabm_basicsr.quantization.quantizers.fake_quantize import integer_grid
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

IMAGE_FACTORS = (-1, 0, 1)  # of the image classes 0, 1, 2
TOP = 255  # of eight bits: nothing to clip
SIGNED_TOP = 127
MATRIX = 2  # axes of the weight of a linear layer


class _QuantizeInput(torch.autograd.Function):
    """Input to integers and back; becomes ``QuantizeLinear -> Clip -> DequantizeLinear``.

    Both ends have a scale and a zero point, as the values that come out may have another unit than
    those that go in. ``top`` is the largest integer, None where the type's own is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale_in: Tensor,
        zero_in: Tensor,
        top: Tensor | None,
        scale_out: Tensor,
        zero_out: Tensor,
    ) -> Tensor:
        view: tuple[int, ...] = ()
        if scale_in.dim():  # of channels
            view = (1, -1, *[1] * (x.dim() - 2))
        integers = (x / scale_in.view(view)).round() + zero_in.view(view)
        limits = torch.iinfo(zero_in.dtype)
        highest = limits.max if top is None else float(top)
        integers = integers.clamp(limits.min, highest)
        return (integers - zero_out) * scale_out

    @staticmethod
    def symbolic(
        g: Any,
        x: Any,
        scale_in: Any,
        zero_in: Any,
        top: Any,
        scale_out: Any,
        zero_out: Any,
    ) -> Any:
        integers = g.op("QuantizeLinear", x, scale_in, zero_in, axis_i=1)
        if top is not None:
            lowest = g.op("Constant", value_t=torch.tensor(0, dtype=torch.uint8))
            integers = g.op("Clip", integers, lowest, top)
        return g.op("DequantizeLinear", integers, scale_out, zero_out).setType(x.type())


class _DequantizeWeight(torch.autograd.Function):
    """Stored integers to the weight; becomes ``DequantizeLinear``, of linear layers transposed."""

    @staticmethod
    def forward(ctx: Any, integers: Tensor, scale: Tensor, axis: int) -> Tensor:
        view = [1] * integers.dim()
        view[axis] = -1
        weight = integers * scale.view(view)
        return weight.t() if integers.dim() == MATRIX else weight

    @staticmethod
    def symbolic(g: Any, integers: Any, scale: Any, axis: int) -> Any:
        sizes = integers.type().sizes()
        kind = scale.type().with_sizes(sizes)
        weight = g.op("DequantizeLinear", integers, scale, axis_i=axis).setType(kind)
        if len(sizes) != MATRIX:
            return weight
        # Meets the one of a linear layer, and both go: runtimes run no integers through it.
        return g.op("Transpose", weight, perm_i=(1, 0)).setType(kind)


class _Grids(NamedTuple):
    """Grids of an input in units of the channel scales, a row per image class, or one for all.

    Attributes:
        scale: ``(L,)``.
        zeros: Zero points: ``(L, C)``, or ``(L, 1)`` where all channels have the same one.
        top: Index of the highest grid point, ``2 ** bits - 1``: ``(L,)``.
    """

    scale: Tensor
    zeros: Tensor
    top: Tensor


class InputOperators(nn.Module):
    """Replaces an `ActivationQuantizer`; its values are in units of the channel scales.

    Args:
        quantizer: The quantizer, of an integer recipe.

    Attributes:
        level: Index of the image's class, ``()``; set before each forward pass.
        step: Scale, ``(L,)`` with a row for each of L image classes, or one for all.
        channel_scale: See `ActivationQuantizer`.
        zero: Zero point that all channels are quantized with, ``(L,)``.
        top: Largest integer, ``(L,)``; None where the integers aren't clipped.
        lowest: Lower end of the range, ``(L,)``, or ``(L, ...)`` of each channel; None where the
            input isn't clipped as floats.
        highest: Upper end, likewise.
    """

    always_clips = False  # rather than only where zero points differ between channels
    step: Tensor
    channel_scale: Tensor | None
    zero: Tensor
    top: Tensor | None
    lowest: Tensor | None
    highest: Tensor | None

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.level: Tensor | None = None
        grids = _grids(quantizer)
        self.register_buffer("step", self.fitting_scale(grids))
        self.register_buffer("channel_scale", quantizer.channel_scale)
        self.register_buffer("zero", grids.zeros.amax(1).to(torch.uint8))
        zeros_differ = grids.zeros.shape[1] > 1
        top = None
        if not zeros_differ and (grids.top < TOP).any():
            top = grids.top.to(torch.uint8)
        self.register_buffer("top", top)
        lowest = None
        highest = None
        if zeros_differ or self.always_clips:
            unit = grids.scale[:, None]  # ranges stay, even where integers get wider apart
            lowest = self._of_channels(-grids.zeros * unit)
            highest = self._of_channels((grids.top[:, None] - grids.zeros) * unit)
        self.register_buffer("lowest", lowest)
        self.register_buffer("highest", highest)

    def fitting_scale(self, grids: _Grids) -> Tensor:
        """The scale at which integers fit into their type, ``(L,)``."""
        return grids.scale

    def _of_channels(self, table: Tensor) -> Tensor:
        """A table ``(L, C)`` or ``(L, 1)`` as its rows broadcast to inputs."""
        shape: tuple[int, ...] = ()
        if self.channel_scale is not None and table.shape[1] > 1:
            shape = self.channel_scale.shape
        return table.view(len(table), *shape)

    def forward(self, x: Tensor) -> Tensor:
        """The input, quantized."""
        scale = self.row(self.step)
        zero = self.row(self.zero)
        top = None if self.top is None else self.row(self.top)
        # A scale per channel costs nothing within the quantization, but runtimes want it on axis 1.
        if self.channel_scale is not None and self.channel_scale.dim() == IMAGE_AXES:
            of_channels = self.channel_scale.flatten()
            x = self.clipped(x, self.channel_scale)
            scales = scale * of_channels
            zeros = zero.expand(len(of_channels))
            return _QuantizeInput.apply(x, scales, zeros, top, scale, zero)
        x = self.clipped(self.without_channel_scale(x))
        return _QuantizeInput.apply(x, scale, zero, top, scale, zero)

    def clipped(self, x: Tensor, unit: Tensor | float = 1.0) -> Tensor:
        """``x`` within the range of each channel, where these differ; ranges times ``unit``."""
        if self.lowest is None or self.highest is None:
            return x
        lowest = self.row(self.lowest) * unit
        x = torch.maximum(x, lowest)
        highest = self.row(self.highest) * unit
        return torch.minimum(x, highest)

    def without_channel_scale(self, x: Tensor) -> Tensor:
        """``x`` in units of its channel scales."""
        if self.channel_scale is None:
            return x
        return x * (1 / self.channel_scale)

    def row(self, table: Tensor) -> Tensor:
        """What a table holds for the image's class."""
        if len(table) == 1:
            return table[0]
        return table[self.level]


class SymmetricInputOperators(InputOperators):
    """The same without zero points: ``x -> Clip -> QuantizeLinear -> DequantizeLinear``.

    Integers are signed. Grid points stay where they are wherever they fit into -127..127, which all
    of up to 7 bits do; others get wider apart.
    """

    always_clips = True
    none: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__(quantizer)
        self.register_buffer("none", torch.zeros((), dtype=torch.int8))

    def fitting_scale(self, grids: _Grids) -> Tensor:
        """The scale at which integers fit into -127..127, ``(L,)``."""
        reach = torch.maximum(grids.zeros, grids.top[:, None] - grids.zeros).amax(1)
        return grids.scale * (reach / SIGNED_TOP).clamp(min=1)

    def forward(self, x: Tensor) -> Tensor:
        """The input, quantized."""
        scale = self.row(self.step)
        # Where a product, a clip and a quantization stand in a row, OpenVINO 2026.4 clips with the
        # ends of other channels.
        if self.channel_scale is not None and self.channel_scale.dim() == IMAGE_AXES:
            of_channels = self.channel_scale.flatten()
            x = self.clipped(x, self.channel_scale)
            zeros = self.none.expand(len(of_channels))
            return _QuantizeInput.apply(x, scale * of_channels, zeros, None, scale, self.none)
        x = self.clipped(self.without_channel_scale(x))
        return _QuantizeInput.apply(x, scale, self.none, None, scale, self.none)


class SignedInputOperators(nn.Module):
    """Replaces an `ActivationQuantizer` of signed integers: ``x -> Quantize -> DequantizeLinear``.

    Args:
        quantizer: The quantizer, of a network for an engine without zero points.

    Attributes:
        step: Scale, ``()``.
        none: The zero point 0, int8.
    """

    level: Tensor | None = None
    step: Tensor
    none: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        scale = quantizer.scale(quantizer.lower)
        self.register_buffer("step", scale.detach().reshape(()))
        self.register_buffer("none", torch.zeros((), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        """The input, quantized."""
        return _QuantizeInput.apply(x, self.step, self.none, None, self.step, self.none)


class WeightOperators(nn.Module):
    """Replaces a `WeightQuantizer`; its weight takes inputs in units of the channel scales.

    Args:
        quantizer: The quantizer, of an integer recipe.
        weight: The layer's weight.
    """

    integers: Tensor
    step: Tensor

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor) -> None:
        super().__init__()
        indices = quantizer.grid_indices(weight).to(torch.int16)
        integers = (indices + int(quantizer.lowest)).to(torch.int8)
        self.axis = quantizer.axis
        if weight.dim() == MATRIX:
            self.axis = 1 - quantizer.axis
            integers = integers.t().contiguous()
        self.register_buffer("integers", integers)
        self.register_buffer("step", quantizer.scale.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, whatever the argument."""
        return _DequantizeWeight.apply(self.integers, self.step, self.axis)


@torch.no_grad()
def _grids(quantizer: ActivationQuantizer) -> _Grids:
    factors = quantizer.lower.new_tensor(IMAGE_FACTORS)
    if quantizer.adaptive:
        quantizer.image_factor = factors
    lower, upper = quantizer.common_ends(factors)
    scale = quantizer.scale(factors)
    top = 2 ** quantizer.bits_used() - 1
    quantizer.image_factor = None

    _, zero = integer_grid(lower, upper, top)
    scale, zero, top = torch.broadcast_tensors(scale, zero, top)
    if quantizer.channel_shift is None:
        return _Grids(scale, zero[:, None], top)
    lower, upper = shifted(lower[:, None], upper[:, None], quantizer.channel_shift.flatten())
    _, zeros = integer_grid(lower, upper, top[:, None])
    reach = zeros.amax(1) - zeros.amin(1)
    if (reach + top > TOP).any():
        raise ExportError(
            "an input learned to use 8 bits after its channels got zero points of their own, and "
            "no 8 bits hold these; fine-tune without the phase bit_mapping"
        )
    first = zeros[:, :1]
    if not (zeros != first).any():
        zeros = first
    return _Grids(scale, zeros, top)


def use_operators(frozen: QuantizedNetwork, symmetric: bool = False) -> list[InputOperators]:
    """Replace all quantizers of a frozen network by modules that trace as ONNX operators.

    Args:
        frozen: See `freeze`; changed in place.
        symmetric: Whether inputs are quantized without zero points.

    Returns:
        What replaced the quantizers of inputs.
    """
    weight_quantizers = frozen.weight_quantizers()
    for name, layer in frozen.layers().items():
        if isinstance(layer, QuantizedProduct):
            continue
        if name in weight_quantizers:
            _use_weight_operators(layer, weight_quantizers[name])
        else:
            _take_channel_scale(layer)
    _use_activation_operators(frozen.network, symmetric)
    return [module for module in frozen.network.modules() if isinstance(module, InputOperators)]


def _use_activation_operators(network: nn.Module, symmetric: bool) -> None:
    """Replace all quantizers of activations; what shares one shares its operators."""
    kind = SymmetricInputOperators if symmetric else InputOperators
    replaced: dict[nn.Module, nn.Module] = {}
    for module in list(network.modules()):
        for key, child in list(module._modules.items()):  # named_children() lists each once
            if not isinstance(child, ActivationQuantizer):
                continue
            if child not in replaced:
                operators = SignedInputOperators if child.signed else kind
                replaced[child] = operators(child)
            setattr(module, key, replaced[child])


def _use_weight_operators(layer: QuantizedLayer, quantizer: WeightQuantizer) -> None:
    bias = layer.effective_bias()
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    layer.register_module("weight_quantizer", WeightOperators(quantizer, layer.weight))


def _take_channel_scale(layer: QuantizedLayer) -> None:
    """Let a float weight take inputs in units of their channel scales."""
    channel_scale = getattr(layer.input_quantizer, "channel_scale", None)
    if channel_scale is None:
        return
    _, of_weight = layer.channel_views(channel_scale.flatten())
    layer.weight = nn.Parameter(layer.weight * of_weight, requires_grad=False)
