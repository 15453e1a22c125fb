"""What all quantized layers share, and the table that says which type replaces which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import MIN_WIDTH, recomputed
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

_QUANTIZED_TYPES: dict[type[nn.Module], type[QuantizedLayer]] = {}
# What a subclass may not redefine, if it is to compute what its base does.
_COMPUTING = ("forward", "_conv_forward", "__call__")
MAX_COLOURS = 4


class QuantizedLayer(nn.Module):
    """Mixin for a layer whose input and weight are quantized.

    Attributes:
        weight: The full-precision weight, the base layer's own parameter.
        bias: The base layer's own bias, ``(C_out,)``, or None.
        weight_axis: Axis of the output channels in ``weight``.
        output_axis: Axis of the channels in the output.
        copies_input: Whether the network changes the layer's input in place afterwards, which
            gradients need as it was.
        linear: Whether `compute` without bias is linear in ``weight``, which makes learning its
            range cheaper.
        input_quantizer: `ActivationQuantizer`, or ``nn.Identity`` where activations stay in float
            (32 bits).
        weight_quantizer: `WeightQuantizer`, or ``nn.Identity`` where weights stay in float
            (32 bits).
        factors_of_calls: Of networks that take clips, factors of the rows of each call that is
            still to come in the pass that runs, ``(B * k,)``.
        rounds_bias: Whether the bias is a whole number of the units that products add up to, as
            engines without floats between layers have it.
        output_quantizer: `ActivationQuantizer` of the output; None where engines don't want one.
    """

    # Of the base layer, which says more of their types.
    weight: Any
    bias: Any
    weight_axis = 0
    output_axis = -3
    linear = False
    copies_input = False
    rounds_bias = False
    factors_of_calls: Iterator[Tensor] = iter(())
    input_quantizer: ActivationQuantizer | nn.Identity
    weight_quantizer: WeightQuantizer | nn.Identity
    output_quantizer: ActivationQuantizer | None

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the base layer computes from ``input`` and other arguments, on quantized values."""
        # Its own sums and products aren't those of the module around it.
        with torch._C.DisableTorchFunction():
            output = self._forward(input, *args, **kwargs)
            if self.output_quantizer is not None:
                output = self.output_quantizer(output)
        return output

    def _forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.copies_input and torch.is_grad_enabled():
            input = input.clone()
        x = self.input_quantizer(input)
        weight = self.weight_quantizer(self.weight)
        bias = self.bias
        quantizer = self.weight_quantizer
        if isinstance(quantizer, WeightQuantizer):
            bias = self.effective_bias()
            if self._is_integer() and not torch.is_grad_enabled():
                return self._compute_integers(x, weight, bias, *args, **kwargs)
            learns_range_alone = weight.requires_grad and quantizer.learns_range_alone(self.weight)
            if self.linear and learns_range_alone:
                with recomputed(x):
                    return self._compute_for_range(x, weight, bias, *args, **kwargs)
        with recomputed(x):
            return self.compute(x, weight, bias, *args, **kwargs)

    def effective_bias(self) -> Tensor | None:
        """The bias that is added, ``(C_out,)``: corrected, and rounded where engines round it.

        Gradients pass the rounding as if it weren't there.
        """
        quantizer = self.weight_quantizer
        if not isinstance(quantizer, WeightQuantizer):
            return self.bias
        bias = quantizer.bias(self.bias)
        if bias is None or not self.rounds_bias or not self._is_integer():
            return bias
        assert isinstance(self.input_quantizer, ActivationQuantizer)
        unit = self.input_quantizer.scale(self.input_quantizer.lower) * self._output_scale()
        unit = unit.detach().clamp(min=MIN_WIDTH)
        rounded = (bias.detach() / unit).round() * unit
        return bias + (rounded - bias.detach())

    def _output_scale(self) -> Tensor:
        """Scale of the weight of each output channel, ``(C_out,)``; groups share theirs."""
        assert isinstance(self.weight_quantizer, WeightQuantizer)
        scale = self.weight_quantizer.scale
        return scale.repeat(self.output_channels // len(scale))

    def _is_integer(self) -> bool:
        """Whether integers reproduce the layer: both quantizers are on and of that kind."""
        for quantizer in (self.input_quantizer, self.weight_quantizer):
            if isinstance(quantizer, nn.Identity):
                return False
            if not quantizer.integer or not quantizer.enabled:
                return False
        return self.linear

    def _compute_integers(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """`compute` on whole numbers, as integer kernels do: float32 adds them up exactly.

        Sums that were rounded would now and then bring a later value to another grid point than the
        kernels do, and float16 (of autocast, say) can't hold them at all.
        """
        assert isinstance(self.input_quantizer, ActivationQuantizer)
        assert isinstance(self.weight_quantizer, WeightQuantizer)
        dtype = x.dtype
        input_scale = self.input_quantizer.scale(x)
        channel_scale = self.input_quantizer.channel_scale
        scales = input_scale if channel_scale is None else input_scale * channel_scale
        x_integers = (x / scales).round_()
        # Channels without weights have no scale.
        weight_scales = self.weight_quantizer.scales(weight).clamp(min=MIN_WIDTH)
        weight_integers = (weight / weight_scales).round_()
        with torch.autocast(x.device.type, enabled=False):
            out = self.compute(x_integers.float(), weight_integers.float(), None, *args, **kwargs)
        if not x.is_cpu:
            # Fast convolutions of GPUs (Winograd, FFT) go by fractions, whose sums aren't whole.
            out.round_()

        per_channel = [1] * out.dim()
        per_channel[self.output_axis] = -1
        out.mul_(input_scale * self._output_scale().view(per_channel))
        if bias is not None:
            out.add_(bias.view(per_channel))
        return out.to(dtype)

    def _compute_for_range(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """`compute` where of the weight nothing but its range is learned."""
        assert isinstance(self.weight_quantizer, WeightQuantizer)
        out = self.compute(x, weight.detach(), bias, *args, **kwargs)
        slope = self.weight_quantizer.slope(self.weight)

        def change(quantized: Tensor) -> Tensor:
            # Outside of an autocast that the network itself switches on.
            return self.compute(quantized.to(slope.dtype), slope, None, *args, **kwargs)

        upper = self.weight_quantizer.upper
        return _RangeGradient.apply(out, upper, x.detach(), change, self.output_axis)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the base layer computes with ``weight`` and ``bias``; each type has its own way.

        It may run again in a backward pass, so it changes nothing but its result.
        """
        raise NotImplementedError

    @property
    def output_channels(self) -> int:
        """Length of the bias."""
        return self.weight.shape[self.weight_axis]

    def inputs(self, name: str) -> dict[str, nn.Module]:
        """Quantizers of what the layer of that name takes, by a name of their own."""
        return {name: self.input_quantizer}

    @property
    def input_channels(self) -> int | None:
        """Channels of the input; None for layers without such, which can't be equalised."""
        return None

    def channel_views(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """A value per input channel as it broadcasts against the input and against the weight.

        Args:
            scale: ``(C_in,)``.
        """
        raise NotImplementedError

    def columns(self, x: Tensor, count: int) -> Tensor | None:
        """What each output value is a weighted sum of, at evenly spaced positions.

        Args:
            x: The layer's input.
            count: About how many positions to take of all samples together, the same ones of each.

        Returns:
            ``(G, K, N)``: groups, weights of an output channel, positions, so that the output is
            ``weight.reshape(G, -1, K) @ columns``; None for layers that are no such sum, whose
            weights are rounded to the nearest.
        """
        return None

    @classmethod
    def from_float(
        cls,
        layer: nn.Module,
        input_quantizer: ActivationQuantizer | nn.Identity,
        weight_quantizer: WeightQuantizer | nn.Identity,
    ) -> QuantizedLayer:
        """A quantized layer around the state of ``layer``.

        Parameters, buffers and hooks are shared, not copied. A copy of the dictionary rather than a
        new construction serves every subclass and every option of a layer.
        """
        quantized = cls.__new__(cls)
        state = {}
        for key, value in vars(layer).items():
            state[key] = value.copy() if isinstance(value, dict) else value
        quantized.__dict__ = state
        quantized.input_quantizer = input_quantizer
        quantized.weight_quantizer = weight_quantizer
        quantized.register_module("output_quantizer", None)
        return quantized


def spacing(positions: int, count: int, samples: int = 1) -> int:
    """Distance at which positions of all samples are taken evenly; at least 1.

    Args:
        positions: How many there are in each sample.
        count: How many to take of all samples together, or a few less.
        samples: How many samples there are.
    """
    per_sample = max(-(-count // samples), 1)
    return max(-(-positions // per_sample), 1)


class _RangeGradient(torch.autograd.Function):
    """Passes a layer's output through, and its gradient to the range of the layer's weight too.

    Only the direction in which a range moves its weights matters. What the layer computes with that
    direction for a weight costs less than the gradient of every weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        upper: Tensor,
        x: Tensor,
        change: Callable[[Tensor], Tensor],
        axis: int,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.change = change
        ctx.axis = axis
        ctx.shape = upper.shape
        # Not a view of it, which an activation that works in place could not take.
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        change = ctx.change(x)
        channels = ctx.axis % grad.dim()
        others = [axis for axis in range(grad.dim()) if axis != channels]
        per_channel = change.mul_(grad).sum(others)
        # One range per tensor, per output channel, or per output channel of a group.
        of_upper = per_channel.view(-1, *ctx.shape).sum(0)
        return grad, of_upper, None, None, None


def register_layer(
    float_type: type[nn.Module],
) -> Callable[[type[QuantizedLayer]], type[QuantizedLayer]]:
    """Class decorator: the decorated `QuantizedLayer` replaces layers of ``float_type``."""

    def register(quantized_type: type[QuantizedLayer]) -> type[QuantizedLayer]:
        _QUANTIZED_TYPES[float_type] = quantized_type
        return quantized_type

    return register


def quantized_type(layer: nn.Module) -> type[QuantizedLayer] | None:
    """The quantized type that replaces ``layer``, or None.

    It doesn't depend on weights, which a checkpoint may bring later. For a subclass of a registered
    type it is a new type, of the subclass and the quantized one.
    """
    base = _registered_type(layer)
    if base is None:
        return None
    quantized = _QUANTIZED_TYPES[base]
    kind = type(layer)
    if kind is base:
        return quantized
    return type(f"Quantized{kind.__name__}", (quantized, kind), {"__module__": kind.__module__})


def _registered_type(layer: nn.Module) -> type[nn.Module] | None:
    """The type in the table that ``layer`` is of.

    A subclass counts as long as it computes the same: one that only sets its parent's options.
    """
    kind = type(layer)
    base = next((parent for parent in kind.__mro__ if parent in _QUANTIZED_TYPES), None)
    if base is None:
        return None
    for name in _COMPUTING:
        if getattr(kind, name, None) is not getattr(base, name, None):
            return None
    return base


def is_colour_shift(layer: nn.Module) -> bool:
    """Whether ``layer`` is a 1x1 convolution that only scales and shifts each colour.

    That is arithmetic on pixels, and stays in full precision.
    """
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.groups != 1:
        return False
    if layer.in_channels != layer.out_channels or layer.weight is None or layer.weight.is_meta:
        return False
    if not 1 < layer.in_channels <= MAX_COLOURS:
        return False
    weight = layer.weight.detach().flatten(1)
    return torch.equal(weight, weight.diag().diag())


def is_half(layer: nn.Module) -> bool:
    """Whether the weight of ``layer`` has 16 bits, too few for what quantization computes with."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.dtype in (torch.float16, torch.bfloat16)


def is_quantizable(layer: nn.Module) -> bool:
    """Whether ``layer`` has a quantized counterpart and needs it, or is one."""
    if isinstance(layer, QuantizedLayer):
        return True
    if is_colour_shift(layer) or is_half(layer):
        return False
    return _registered_type(layer) is not None


def float_type(quantized: type[nn.Module]) -> Any:
    """The type of layer or module that a quantized type was derived from."""
    return quantized.__bases__[-1]
