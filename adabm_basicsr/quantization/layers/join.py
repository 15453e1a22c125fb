"""Quantized joins: sums of two images and concatenations of their channels.

Engines that keep values as integers from layer to layer add them up as integers too. A join is an
operator inside some module's ``forward``. As with products, a torch function mode hands the joins
of that module to quantized ones while it runs, the first to the first and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adabm_basicsr.quantization.checks import CLIP_AXES, IMAGE_AXES
from adabm_basicsr.quantization.layers.mixing import MadeType, made_type, set_aside
from adabm_basicsr.quantization.layers.product import are_activations

JOINS_KEY = "quantized_joins"  # child of a module whose joins are quantized
CHANNEL_AXIS = 1
Join = Callable[[Sequence[Tensor]], Tensor]

_SUMS = {torch.add, Tensor.add, Tensor.__add__}
_SUMS_IN_PLACE = {Tensor.add_, Tensor.__iadd__}
_CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}


class QuantizedJoin(nn.Module):
    """A sum or concatenation.

    Args:
        operands: Number of values that it takes.

    Attributes:
        operands: Quantizer of each, ``nn.Identity`` of one that isn't quantized here.
        output: Quantizer of what it makes, or ``nn.Identity``.
    """

    operands: nn.ModuleList

    def __init__(self, operands: int) -> None:
        super().__init__()
        self.operands = nn.ModuleList(nn.Identity() for _ in range(operands))
        self.output = nn.Identity()

    def forward(self, join: Join, values: Sequence[Tensor]) -> Tensor:
        """``join(values)`` on quantized values.

        Args:
            join: How the network joins them.
            values: ``(B, C, H, W)`` each.
        """
        quantized = []
        for quantizer, value in zip(self.operands, values, strict=True):
            quantized.append(quantizer(value))
        output: Tensor = self.output(join(quantized))
        return output


class JoinMode(TorchFunctionMode):
    """Calls `join` for every join of images while the mode is active."""

    def join(self, function: Join, values: Sequence[Tensor]) -> Tensor:
        """What to compute instead of ``function(values)``."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SUMS and not kwargs and _can_be_added(args):
            return self.join(add, args)
        if func in _SUMS_IN_PLACE and not kwargs and _can_be_added(args):
            return _written(args[0], self.join(add, args))
        if func in _CONCATENATIONS:
            tensors, axis = _concatenated(*args, **kwargs)
            if axis in (CHANNEL_AXIS, CHANNEL_AXIS - IMAGE_AXES) and _are_images(tensors):
                return self.join(partial(torch.cat, dim=CHANNEL_AXIS), tensors)
        return func(*args, **kwargs)


def add(values: Sequence[Tensor]) -> Tensor:
    """The sum of two images."""
    left, right = values
    return left + right


def _written(target: Tensor, total: Tensor) -> Tensor:
    """``target``, which holds ``total`` now."""
    if not torch.jit.is_tracing():  # type: ignore[attr-defined]
        return target.copy_(total)
    # A copy would be traced as an expansion of the sum to its own shape.
    torch._C._set_value_trace(target, torch._C._get_value_trace(total))  # type: ignore[attr-defined]
    return target


def _concatenated(
    tensors: Sequence[Tensor], dim: int = 0, axis: int | None = None, **_: Any
) -> tuple[Sequence[Tensor], int]:
    """The tensors that ``torch.cat`` joins, and along which axis."""
    return tensors, dim if axis is None else axis


def _can_be_added(operands: Sequence[object]) -> bool:
    """Whether these are two images of one shape, whatever the size of the batch.

    One may be the same for the whole batch. An example of one image doesn't show that.
    """
    if len(operands) != 2 or not _are_images(operands):
        return False
    left, right = operands
    return left.shape[1:] == right.shape[1:]  # type: ignore[attr-defined]


def _are_images(operands: Sequence[object]) -> bool:
    return are_activations(operands) and all(map(is_image, operands))


def is_image(x: object) -> bool:
    """Whether this is a tensor of images, ``(B, C, H, W)``."""
    return isinstance(x, Tensor) and x.dim() == IMAGE_AXES and x.is_floating_point()


def is_clip(x: object) -> bool:
    """Whether this is a tensor of clips, ``(B, T, C, H, W)``."""
    return isinstance(x, Tensor) and x.dim() == CLIP_AXES and x.is_floating_point()


class _QuantizingMode(JoinMode):
    """Hands joins to quantized ones, the first to the first and so on."""

    def __init__(self, joins: nn.ModuleList) -> None:
        super().__init__()
        self.joins = iter(joins)

    def join(self, function: Join, values: Sequence[Tensor]) -> Tensor:
        """``function(values)`` on quantized values."""
        quantized = next(self.joins, None)
        # A module around this one may quantize joins too; this one isn't its own.
        with torch._C.DisableTorchFunction():
            if not isinstance(quantized, QuantizedJoin) or len(quantized.operands) != len(values):
                # A branch that wasn't taken when the network was looked at.
                return function(values)
            output: Tensor = quantized(function, values)
            return output


class QuantizesJoins(MadeType):
    """Mixin for a module whose ``forward`` computes joins."""

    prefix = "Joining"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes, with quantized joins."""
        with set_aside(self, JOINS_KEY) as joins, _QuantizingMode(joins):
            return super().forward(*args, **kwargs)


def quantize_joins(module: nn.Module, joins: Sequence[QuantizedJoin]) -> None:
    """Make ``module`` compute its joins by ``joins``, in the order of its ``forward``."""
    module.__class__ = made_type(QuantizesJoins, type(module))
    module.add_module(JOINS_KEY, nn.ModuleList(joins))
