"""Quantizers as the ONNX operators that runtimes execute as integers; why in these forms: docs/integers.md.

An input becomes ``DequantizeLinear(Clip(QuantizeLinear(x)))``, a weight ``DequantizeLinear(integers)`` with a scale per
output channel. Where each input channel has a zero point of its own, it is clipped to its own range before, and all
are then quantized with the largest of them: integers that differ by a constant stand for the same value. What differs
between image levels is a table with a row for each; the graph computes the level, which picks the row. Modules of this
file replace the quantizers of a frozen network for its tracing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.layers import QuantizedLayer, QuantizedProduct
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer, shifted
from adabm_basicsr.quantization.quantizers.fake_quantize import integer_grid
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

IMAGE_LEVELS = (-1, 0, 1)
TOP = 255  # of eight bits: nothing to clip
SIGNED_TOP = 127
MATRIX = 2  # axes of the weight of a linear layer


class _QuantizeInput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        scale: Tensor,
        zero: Tensor,
        top: Tensor | None,
        step: Tensor,
        step_zero: Tensor,
    ):
        limits = torch.iinfo(zero.dtype)
        of_channels = (1, -1, *[1] * (x.dim() - 2)) if scale.dim() else ()
        integers = (x / scale.view(of_channels)).round() + zero.view(of_channels)
        integers = integers.clamp(limits.min, limits.max if top is None else float(top))
        return (integers - step_zero) * step

    @staticmethod
    def symbolic(g, x, scale, zero, top, step, step_zero):
        integers = g.op("QuantizeLinear", x, scale, zero, axis_i=1)
        if top is not None:
            integers = g.op(
                "Clip", integers, g.op("Constant", value_t=torch.tensor(0, dtype=torch.uint8)), top
            )
        return g.op("DequantizeLinear", integers, step, step_zero).setType(x.type())


class _DequantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, integers: Tensor, step: Tensor, axis: int) -> Tensor:
        weight = integers * step.view([-1 if of == axis else 1 for of in range(integers.dim())])
        return weight.t() if integers.dim() == MATRIX else weight

    @staticmethod
    def symbolic(g, integers, step, axis: int):
        kind = step.type().with_sizes(integers.type().sizes())
        weight = g.op("DequantizeLinear", integers, step, axis_i=axis).setType(kind)
        if len(integers.type().sizes()) != MATRIX:
            return weight
        # Meets the one of a linear layer, and both go: runtimes run no integers through it.
        return g.op("Transpose", weight, perm_i=(1, 0)).setType(kind)


class InputOperators(nn.Module):
    """Replaces an `ActivationQuantizer`; the values that it gives are in units of the channel scales.

    Args:
        quantizer: The quantizer, of an integer recipe.
    """

    always_clips = False  # rather than where zero points differ between channels

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.level: Tensor | None = (
            None  # index of the image's level, scalar; set before each forward pass
        )
        step, zeros, top = _grids(quantizer)
        self.register_buffer("step", self.fitting_step(step, zeros, top))
        self.register_buffer("channel_scale", quantizer.channel_scale)
        own = zeros.shape[1] > 1  # whether zero points differ between channels
        self.register_buffer("zero", zeros.amax(1).to(torch.uint8))
        self.register_buffer("top", top.to(torch.uint8) if not own and (top < TOP).any() else None)
        for name, levels in (("lowest", -zeros), ("highest", top[:, None] - zeros)):
            clips = own or self.always_clips
            self.register_buffer(name, self._of_channels(levels * step[:, None]) if clips else None)

    def fitting_step(self, step: Tensor, zeros: Tensor, top: Tensor) -> Tensor:
        """Step whose integers fit into their type, from what `_grids` gives."""
        return step

    def _of_channels(self, table: Tensor) -> Tensor:
        """A value per image level and channel, ``(L, C)``, or level, ``(L, 1)``, as its rows broadcast to inputs."""
        return table.view(len(table), *(self.channel_scale.shape if table.shape[1] > 1 else ()))

    def forward(self, x: Tensor) -> Tensor:
        """The input, quantized."""
        step, zero, top = self.row(self.step), self.row(self.zero), self.row(self.top)
        if (
            self.channel_scale is None or self.channel_scale.dim() < 4
        ):  # runtimes want channels of a scale on axis 1
            x = self.clipped(self.without_channel_scale(x))
            return _QuantizeInput.apply(x, step, zero, top, step, zero)
        channels = (
            self.channel_scale.flatten()
        )  # a scale per channel costs nothing within the quantization
        x = self.clipped(x, self.channel_scale)
        return _QuantizeInput.apply(x, step * channels, zero.expand(len(channels)), top, step, zero)

    def clipped(self, x: Tensor, unit: Tensor | float = 1.0) -> Tensor:
        """``x`` within the range of each of its channels, where these differ; ends are in units of ``unit``."""
        if self.lowest is None:
            return x
        return torch.minimum(
            torch.maximum(x, self.row(self.lowest) * unit), self.row(self.highest) * unit
        )

    def without_channel_scale(self, x: Tensor) -> Tensor:
        """``x`` in units of its channel scales."""
        return x if self.channel_scale is None else x * (1 / self.channel_scale)

    def row(self, table: Tensor | None) -> Tensor | None:
        """What the table holds for the image's level."""
        if table is None:
            return None
        return table[0] if len(table) == 1 else table[self.level]


class SymmetricInputOperators(InputOperators):
    """The same without zero points, as ``DequantizeLinear(QuantizeLinear(Clip(x)))`` with signed integers.

    Levels stay where they are wherever they fit into -127..127, which all of up to 7 bits do; others get wider apart.
    """

    always_clips = True

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__(quantizer)
        self.register_buffer("none", torch.zeros((), dtype=torch.int8))

    def fitting_step(self, step: Tensor, zeros: Tensor, top: Tensor) -> Tensor:
        """See `InputOperators.fitting_step`."""
        reach = torch.maximum(zeros, top[:, None] - zeros).amax(1)
        return step * (reach / SIGNED_TOP).clamp(min=1)

    def forward(self, x: Tensor) -> Tensor:
        """The input, quantized."""
        x, lowest, highest = (
            self.without_channel_scale(x),
            self.row(self.lowest),
            self.row(self.highest),
        )
        x = self.clipped(x) if lowest.dim() else x.clamp(lowest, highest)
        step = self.row(self.step)
        return _QuantizeInput.apply(x, step, self.none, None, step, self.none)


class WeightOperators(nn.Module):
    """Replaces a `WeightQuantizer`; the weight that it gives takes inputs in units of the channel scales."""

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor) -> None:
        super().__init__()
        integers = (quantizer.grid_indices(weight).to(torch.int16) - 2 ** (quantizer.bits - 1)).to(
            torch.int8
        )
        turned = weight.dim() == MATRIX
        self.axis = 1 - quantizer.axis if turned else quantizer.axis
        self.register_buffer("integers", integers.t().contiguous() if turned else integers)
        self.register_buffer("step", quantizer.scale.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, whatever the argument."""
        return _DequantizeWeight.apply(self.integers, self.step, self.axis)


@torch.no_grad()
def _grids(quantizer: ActivationQuantizer) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, zero points and highest level in units of the channel scales: of each image level, or of all.

    Returns:
        ``(L,)``, ``(L, C)`` or ``(L, 1)`` where all channels have the same one, and ``(L,)``.
    """
    levels = quantizer.lower.new_tensor(IMAGE_LEVELS)
    if quantizer.adaptive:
        quantizer.image_factor = levels
    ends, step, top = (
        quantizer.common_ends(levels),
        quantizer.scale(levels),
        2 ** quantizer.bits_used() - 1,
    )
    quantizer.image_factor = None
    step, zero, top = torch.broadcast_tensors(step, integer_grid(*ends, top)[1], top)
    if quantizer.channel_shift is None:
        return step, zero[:, None], top
    of_channels = shifted(*(end[:, None] for end in ends), quantizer.channel_shift.flatten())
    zeros = integer_grid(*of_channels, top[:, None])[1]
    if (zeros.amax(1) - zeros.amin(1) + top > TOP).any():
        raise AdaBMError(
            "an input learned to use 8 bits after its channels got zero points of their own, and no 8 bits hold these; "
            "fine-tune without the phase bit_mapping"
        )
    return step, zeros if (zeros != zeros[:, :1]).any() else zeros[:, :1], top


def use_operators(frozen: QuantizedNetwork, symmetric: bool = False) -> list[InputOperators]:
    """Replace all quantizers of a frozen network, see `freeze`, and return those of inputs."""
    kind = SymmetricInputOperators if symmetric else InputOperators
    weighted = frozen.weight_quantizers()
    for name, layer in frozen.layers().items():
        if name in weighted:
            _use_weight_operators(layer, weighted[name])
        elif (
            isinstance(layer, QuantizedLayer)
            and getattr(layer.input_quantizer, "channel_scale", None) is not None
        ):
            of_weight = layer.channel_views(layer.input_quantizer.channel_scale.flatten())[1]
            layer.weight = nn.Parameter(layer.weight * of_weight, requires_grad=False)
        for key in (
            ("left", "right") if isinstance(layer, QuantizedProduct) else ("input_quantizer",)
        ):
            if isinstance(getattr(layer, key), ActivationQuantizer):
                setattr(layer, key, kind(getattr(layer, key)))
    return [module for module in frozen.network.modules() if isinstance(module, InputOperators)]


def _use_weight_operators(layer: QuantizedLayer, quantizer: WeightQuantizer) -> None:
    if layer.bias is None and quantizer.bias_correction is not None:
        layer.bias = nn.Parameter(quantizer.bias_correction.detach().clone(), requires_grad=False)
    layer.weight_quantizer = WeightOperators(quantizer, layer.weight)
