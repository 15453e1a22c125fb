"""What all quantized layers share, and the table that says which type replaces which."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import MIN_WIDTH, recomputed
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

_QUANTIZED_TYPES: dict[type[nn.Module], type[QuantizedLayer]] = {}
# What a subclass may not redefine, if it is to compute what its base does.
_COMPUTING = ("forward", "_conv_forward", "__call__")


class QuantizedLayer(nn.Module):
    """Mixin for a layer whose input and weight are quantized.

    Attributes:
        weight: The full-precision weight, the base layer's own parameter.
        weight_axis: Axis of the output channels in ``weight``.
        output_axis: Axis of the channels in the output.
        copies_input: Whether the network changes the layer's input in place afterwards, which gradients need as it was.
        linear: Whether `compute` without bias is linear in ``weight``, which makes learning its range cheaper.
        input_quantizer: `ActivationQuantizer`, or ``nn.Identity`` where activations stay in float (32 bits).
        weight_quantizer: `WeightQuantizer`, or ``nn.Identity`` where weights stay in float (32 bits).
    """

    weight: nn.Parameter
    weight_axis = 0
    output_axis = -3
    linear = False
    copies_input = False
    input_quantizer: ActivationQuantizer | nn.Identity
    weight_quantizer: WeightQuantizer | nn.Identity

    def forward(self, input: Tensor, *args, **kwargs) -> Tensor:
        """What the base layer computes from ``input`` and further arguments, on quantized input and weight."""
        if self.copies_input and torch.is_grad_enabled():
            input = input.clone()
        x, weight, quantizer = (
            self.input_quantizer(input),
            self.weight_quantizer(self.weight),
            self.weight_quantizer,
        )
        quantizes = isinstance(quantizer, WeightQuantizer)
        bias = quantizer.bias(self.bias) if quantizes else self.bias
        if quantizes and not torch.is_grad_enabled() and self._is_integer():
            return self._compute_integers(x, weight, bias, *args, **kwargs)
        with recomputed(x):
            cheap = (
                quantizes
                and self.linear
                and weight.requires_grad
                and quantizer.learns_range_alone(self.weight)
            )
            if not cheap:
                return self.compute(x, weight, bias, *args, **kwargs)
            out = self.compute(x, weight.detach(), bias, *args, **kwargs)
            slope = quantizer.slope(self.weight)

            def change(quantized: Tensor) -> Tensor:
                return self.compute(quantized, slope, None, *args, **kwargs)

            return _RangeGradient.apply(out, quantizer.upper, x.detach(), change, self.output_axis)

    def _is_integer(self) -> bool:
        quantizers = self.input_quantizer, self.weight_quantizer
        return self.linear and all(getattr(q, "integer", False) and q.enabled for q in quantizers)

    def _compute_integers(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *args, **kwargs
    ) -> Tensor:
        """`compute` on whole numbers, as integer kernels do: float32 adds them up exactly, in whatever order.

        Sums that were rounded would now and then bring a later value to another level than the kernels do, and float16
        (of autocast, say) can't hold them at all.
        """
        kind = x.dtype
        step = self.input_quantizer.scale(x)
        of_weight = self.weight_quantizer.scales(weight).clamp(
            min=MIN_WIDTH
        )  # channels without weights have none
        of_channels = self.input_quantizer.channel_scale
        x = (x / (step if of_channels is None else step * of_channels)).round_()
        with torch.autocast(x.device.type, enabled=False):
            out = self.compute(
                x.float(), (weight / of_weight).round_().float(), None, *args, **kwargs
            )
        view = [1] * out.dim()
        view[self.output_axis] = -1
        of_output = self.weight_quantizer.scale
        of_output = of_output.repeat(self.output_channels // len(of_output))  # groups share them
        out.mul_(step * of_output.view(view))
        return (out if bias is None else out.add_(bias.view(view))).to(kind)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the base layer computes with ``weight`` and ``bias``; each quantized type says it in its own way.

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
        """Channels of the input; None for layers that don't tell them apart, and can't be equalised."""
        return None

    def channel_views(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """A value per input channel, ``(C_in,)``, as it broadcasts against the input and against the weight."""
        raise NotImplementedError

    def columns(self, x: Tensor, count: int) -> Tensor | None:
        """What each output value is a weighted sum of, for an input ``x``, at evenly spaced positions.

        Args:
            x: The layer's input.
            count: About how many positions to take of all samples together, the same ones of each.

        Returns:
            ``(G, K, N)``: groups, weights of an output channel, positions, so that the output is
            ``weight.reshape(G, -1, K) @ columns``; None for layers that are no such sum, whose weights are rounded to
            the nearest.
        """
        return None

    @classmethod
    def from_float(
        cls, layer: nn.Module, input_quantizer: nn.Module, weight_quantizer: nn.Module
    ) -> QuantizedLayer:
        """A quantized layer around the state of ``layer`` (parameters, buffers and hooks are shared, not copied)."""
        quantized = cls.__new__(cls)
        # A copy of the dictionary rather than a new construction: it serves every subclass and every option of a layer.
        quantized.__dict__ = {
            key: value.copy() if isinstance(value, dict) else value
            for key, value in vars(layer).items()
        }
        quantized.input_quantizer = input_quantizer
        quantized.weight_quantizer = weight_quantizer
        return quantized


def spacing(positions: int, count: int, samples: int = 1) -> int:
    """Distance at which ``count`` of the ``positions`` of all ``samples`` lie evenly, or a few less; at least 1."""
    return max(-(-positions // max(-(-count // samples), 1)), 1)


class _RangeGradient(torch.autograd.Function):
    """Passes the output of a layer through, and hands its gradient to the range of the layer's weight too.

    Only the direction in which a range moves its weights matters. What the layer computes with that direction for a
    weight costs less than the gradient of every weight.
    """

    @staticmethod
    def forward(
        ctx, out: Tensor, upper: Tensor, x: Tensor, change: Callable[[Tensor], Tensor], axis: int
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.change, ctx.axis, ctx.shape = change, axis, upper.shape
        ctx.mark_dirty(
            out
        )  # not a view of it, which an activation that works in place could not take
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        change = ctx.change(*ctx.saved_tensors)
        others = [axis for axis in range(grad.dim()) if axis != ctx.axis % grad.dim()]
        # One range per tensor, per output channel, or per output channel of a group.
        return grad, change.mul_(grad).sum(others).view(-1, *ctx.shape).sum(0), None, None, None


def register_layer(
    float_type: type[nn.Module],
) -> Callable[[type[QuantizedLayer]], type[QuantizedLayer]]:
    """Class decorator: the decorated `QuantizedLayer` replaces layers of ``float_type``."""

    def register(quantized_type: type[QuantizedLayer]) -> type[QuantizedLayer]:
        _QUANTIZED_TYPES[float_type] = quantized_type
        return quantized_type

    return register


def quantized_type(layer: nn.Module) -> type[QuantizedLayer] | None:
    """The quantized type that replaces ``layer``, or None; for a subclass of a registered type, a new type of both."""
    kind, base = type(layer), _registered_type(layer)
    if base is None or base is kind:
        return _QUANTIZED_TYPES.get(base)
    return type(
        f"Quantized{kind.__name__}", (_QUANTIZED_TYPES[base], kind), {"__module__": kind.__module__}
    )


def _registered_type(layer: nn.Module) -> type[nn.Module] | None:
    """The type in the table that ``layer`` is of.

    A subclass counts as long as it computes the same: one that only sets its parent's options.
    """
    kind = type(layer)
    base = next((parent for parent in kind.__mro__ if parent in _QUANTIZED_TYPES), None)
    if base is None or is_colour_shift(layer):
        return None
    same = all(getattr(kind, name, None) is getattr(base, name, None) for name in _COMPUTING)
    return base if same else None


def is_colour_shift(layer: nn.Module) -> bool:
    """Whether ``layer`` is a 1x1 convolution that only scales and shifts each colour: arithmetic on pixels."""
    if not (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1):
        return False
    if layer.in_channels != layer.out_channels or layer.in_channels > 4 or layer.weight.is_meta:
        return False
    weight = layer.weight.detach().flatten(1)
    return torch.equal(weight, weight.diag().diag()) and layer.in_channels > 1


def is_quantizable(layer: nn.Module) -> bool:
    """Whether ``layer`` has a quantized counterpart or is one."""
    return isinstance(layer, QuantizedLayer) or _registered_type(layer) is not None
