"""Uniform quantization on a learnable range, simulated in floating point."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

MIN_WIDTH = (
    1e-12  # a dead layer has lower == upper; it then quantizes to that value instead of to NaN
)
PIECE = (
    1 << 18
)  # values that go through a chain of operations at once: they and their like stay in the cache


class _FakeQuantize(torch.autograd.Function):
    """Uniform quantization on [lower, upper] with straight-through rounding, as one scale that saves only its input.

    With ``x_c`` the clipped input and ``x_q`` the result, the gradient of the plain chain of operations is
    ``d x_q / d upper = [x > upper] + (x_q - x_c) / (upper - lower)``, the mirror image of it for ``lower``, and
    ``d x_q / d levels = -(x_q - x_c) / levels``: everything follows from the input again.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: Tensor, scale: Tensor | None
    ) -> Tensor:
        saved = (x, lower, upper, levels) if scale is None else (x, lower, upper, levels, scale)
        ctx.save_for_backward(*saved)
        return _quantize(*saved)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, *grid = ctx.saved_tensors
        grad_x, sums = (
            torch.empty_like(grad),
            [torch.zeros_like(parameter) for parameter in grid[:3]],
        )
        learned = any(ctx.needs_input_grad[1:4])
        for piece_of_grad, out, *piece in _pieces(grad, grad_x, *sums, x, *grid):
            _add_gradients(piece_of_grad, out, *piece, learned=learned)
        return *(
            g if need else None for g, need in zip((grad_x, *sums), ctx.needs_input_grad)
        ), None


def _add_gradients(
    grad,
    grad_x,
    of_lower,
    of_upper,
    of_levels,
    x,
    lower,
    upper,
    levels,
    scale=None,
    *,
    learned: bool,
):
    """Write the gradient of ``x`` and, where they are learned, add to those of both ends and of the levels.

    Comparisons are made into floats: on CPUs these are vectorised, boolean masks are not.
    """
    first, last = _ends(lower, upper, levels, scale)
    clipped = _clip(x, first, last)
    torch.mul(grad, torch.eq(clipped, x, out=grad_x), out=grad_x)
    if not learned:
        return
    rounding = _quantize_piece(x, lower, upper, levels, scale).sub_(clipped).mul_(grad)
    of_levels -= rounding.sum_to_size(of_levels.shape) / levels
    of_width = rounding.sum_to_size(of_upper.shape) / range_width(lower, upper, scale is not None)
    of_upper += torch.gt(x, last, out=clipped).mul_(grad).sum_to_size(of_upper.shape) + of_width
    of_lower += torch.lt(x, first, out=clipped).mul_(grad).sum_to_size(of_lower.shape) - of_width


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split all tensors, which broadcast to the first, alike along the two outermost axes of its memory."""
    like = tensors[0]
    if like.numel() <= PIECE or like.dim() < 2:
        yield tensors
        return
    order = sorted(range(like.dim()), key=lambda axis: -like.stride(axis))
    views = [t.reshape((1,) * (like.dim() - t.dim()) + t.shape).permute(order) for t in tensors]
    shape = views[0].shape
    samples, rows = (max(PIECE // shape[axis:].numel(), 1) for axis in (1, 2))
    for sample in range(0, shape[0], samples):
        of_samples = [v[sample : sample + samples] if v.shape[0] > 1 else v for v in views]
        for row in range(0, shape[1], rows):
            yield tuple(v[:, row : row + rows] if v.shape[1] > 1 else v for v in of_samples)


def range_width(lower: Tensor, upper: Tensor, integer: bool = False) -> Tensor:
    """``upper - lower``, but never zero; of the range that is widened to hold zero if it must for integers."""
    if integer:
        lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    return (upper - lower).clamp(min=MIN_WIDTH)


def _quantize(x: Tensor, *grid: Tensor) -> Tensor:
    x = x.expand(torch.broadcast_shapes(x.shape, *(of_grid.shape for of_grid in grid)))
    out = torch.empty_like(x)
    for piece_of_out, *piece in _pieces(out, x, *grid):
        _quantize_piece(*piece, out=piece_of_out)
    return out


def _quantize_piece(
    x, lower, upper, levels, scale: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    if scale is not None:
        zero_point = integer_grid(lower, upper, levels)[1]
        out = torch.div(x, scale, out=out).round_()
        return _clip(out, -zero_point, levels - zero_point, out=out).mul_(scale)
    # The order of the operations is the published one: another would round a few values the other way.
    width, out = range_width(lower, upper), _clip(x, lower, upper, out=out)
    return out.sub_(lower).div_(width).mul_(levels).round_().div_(levels).mul_(width).add_(lower)


def _clip(x: Tensor, lower: Tensor, upper: Tensor, out: Tensor | None = None) -> Tensor:
    out = torch.maximum(x, lower, out=out)  # unlike torch.clamp with tensors, vectorised on CPUs
    return torch.minimum(out, upper, out=out)


def _ends(
    lower: Tensor, upper: Tensor, levels: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Lowest and highest level; that moving a range to the integer grid changes them counts as rounding."""
    if scale is None:
        return lower, upper
    zero_point = integer_grid(lower, upper, levels)[1]
    return -zero_point * scale, (levels - zero_point) * scale


def integer_grid(lower: Tensor, upper: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of integer arithmetic: the range is widened to hold zero, which is one of the levels.

    Args:
        lower: Lower end of the range, of any shape.
        upper: Upper end.
        levels: Number of levels less one.

    Returns:
        Scale, and zero point as a whole number in ``0 .. levels``, both of the shape that the arguments broadcast to.
    """
    width = range_width(lower, upper, integer=True)
    return width / levels, (
        -lower.clamp(max=0) / width * levels
    ).round()  # symmetric ends give 0.5 exactly


def fake_quantize(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    bits: Tensor | float,
    integer: bool = False,
    scale: Tensor | None = None,
) -> Tensor:
    """Quantize ``x`` to ``2 ** bits`` levels between ``lower`` and ``upper`` and return it as float.

    Gradients reach ``x`` inside the range (straight through the rounding), ``lower`` and ``upper`` through both
    clipping and scale, and ``bits`` through the number of levels.

    Args:
        x: Tensor of any shape.
        lower: Lower end of the clipping range, broadcastable to ``x``.
        upper: Upper end of the clipping range, broadcastable to ``x``, above ``lower``.
        bits: Bit-width, a number or a tensor broadcastable to ``x`` (one per sample: shape ``(B, 1, 1, 1)``).
        integer: Whether zero must be one of the levels, as integer arithmetic needs it: the grid is then
            ``scale * (q - zero_point)`` with whole ``q`` and ``zero_point`` in ``0 .. 2 ** bits - 1``. Symmetric ends
            give the signed integers ``-2 ** (bits - 1) .. 2 ** (bits - 1) - 1`` without a zero point.
        scale: The scale of integers, broadcastable to ``x``, where it isn't just what follows from the range.

    Returns:
        Tensor of the shape of ``x`` whose values lie on the grid ``lower + k * (upper - lower) / (2 ** bits - 1)``,
        shifted by less than a scale where ``integer`` asks for it.
    """
    levels = 2 ** torch.as_tensor(bits, dtype=x.dtype, device=x.device) - 1
    if integer and scale is None:
        scale = integer_grid(lower, upper, levels)[0]
    return _FakeQuantize.apply(x, lower, upper, levels, None if scale is None else scale.detach())


def recomputed(x_q: Tensor) -> AbstractContextManager:
    """Context in which an operation that saves ``x_q`` for its backward pass has it computed anew instead.

    What operations save that they made of ``x_q``, such as a padded copy, stays saved.

    Args:
        x_q: Result of `fake_quantize`; any other tensor is left alone. Its input is saved anyway.
    """
    node = x_q.grad_fn
    if not isinstance(node, _FakeQuantize._backward_cls):
        return nullcontext()
    layout = _layout(x_q)
    return saved_tensors_hooks(
        lambda saved: node if _layout(saved) == layout else saved,
        lambda saved: saved if isinstance(saved, Tensor) else _recompute(saved),
    )


def _layout(x: Tensor) -> tuple:
    return x.data_ptr(), x.dtype, x.shape, x.stride()


@torch.no_grad()
def _recompute(node) -> Tensor:
    return _quantize(*node.saved_tensors)
