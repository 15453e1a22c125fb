"""Uniform quantization on a learnable range, simulated in floating point.

On GPUs with Triton it is one kernel forwards and one backwards, see `triton_kernels`. Everywhere
else PyTorch's operations do the same, and values come to the same grid points.

A range ``[lower, upper]`` at ``b`` bits has ``2 ** b`` grid points. Their distance is the *scale*,
and the *grid index* of a point is its place among them: 0 for the lowest, ``2 ** b - 1`` for the
highest.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from adabm_basicsr.errors import one_line
from adabm_basicsr.quantization.log import LOGGER

# A dead layer has lower == upper; it then quantizes to that value instead of to NaN.
MIN_WIDTH = 1e-12
# Values that go through a chain of operations at once: they and their like stay in the cache.
PIECE = 1 << 18
KERNELS = "adabm_basicsr.quantization.quantizers.triton_kernels"


def fake_quantize(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    bits: Tensor | float,
    integer: bool = False,
    scale: Tensor | None = None,
) -> Tensor:
    """Round ``x`` to ``2 ** bits`` grid points between ``lower`` and ``upper``.

    Gradients reach ``x`` inside the range (straight through the rounding), ``lower`` and ``upper``
    through both clipping and scale, and ``bits`` through the number of grid points.

    Args:
        x: Tensor of any shape.
        lower: Lower end of the clipping range, broadcastable to ``x``.
        upper: Upper end of the clipping range, broadcastable to ``x``, above ``lower``.
        bits: Bit-width, a number or a tensor broadcastable to ``x`` (one per sample: shape
            ``(B, 1, 1, 1)``).
        integer: Whether zero must be a grid point, as integer arithmetic needs it. Grid points are
            then ``scale * (q - zero_point)`` with whole ``q`` and ``zero_point`` in
            ``0 .. 2 ** bits - 1``. Symmetric ends give the signed integers
            ``-2 ** (bits - 1) .. 2 ** (bits - 1) - 1`` without a zero point.
        scale: Scale of integers, broadcastable to ``x``, where it isn't just what follows from the
            range.

    Returns:
        Tensor of the shape of ``x``, still in floating point. Its values are grid points
        ``lower + k * (upper - lower) / (2 ** bits - 1)``, shifted by less than a scale where
        ``integer`` asks for it.
    """
    if not isinstance(bits, Tensor):
        # Filled in on the device: a GPU would be waited for to copy the number there.
        bits = x.new_full((), bits)
    highest = 2 ** bits.to(x) - 1
    if integer and scale is None:
        scale, _ = integer_grid(lower, upper, highest)
    if scale is not None:
        scale = scale.detach()
    quantized: Tensor = _FakeQuantize.apply(x, lower, upper, highest, scale)
    return quantized


def integer_grid(lower: Tensor, upper: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of integer arithmetic, on the range that is widened to hold zero.

    Args:
        lower: Lower end of the range, of any shape.
        upper: Upper end.
        highest: Highest grid index, ``2 ** bits - 1``.

    Returns:
        Scale, and zero point as a whole number in ``0 .. highest``; both of the shape that the
        arguments broadcast to.
    """
    width = range_width(lower, upper, integer=True)
    # Symmetric ends give a half exactly, which rounds to the even neighbour.
    zero_point = (-lower.clamp(max=0) / width * highest).round()
    return width / highest, zero_point


def range_width(lower: Tensor, upper: Tensor, integer: bool = False) -> Tensor:
    """``upper - lower``, but never zero.

    Args:
        lower: Lower end of the range.
        upper: Upper end, of a shape that broadcasts with ``lower``.
        integer: Whether the range is widened to hold zero, as integers need it.
    """
    if integer:
        lower = lower.clamp(max=0)
        upper = upper.clamp(min=0)
    return (upper - lower).clamp(min=MIN_WIDTH)


def recomputed(x_q: Tensor) -> AbstractContextManager:
    """Context in which operations don't keep ``x_q`` for their backward pass; it is computed anew.

    What operations keep that they made of ``x_q``, such as a padded copy, stays kept.

    Args:
        x_q: Result of `fake_quantize`, whose input is kept anyway; any other tensor is left alone.
    """
    node = x_q.grad_fn
    if not isinstance(node, _FakeQuantize._backward_cls):
        return nullcontext()
    layout = _layout(x_q)

    def pack(kept: Tensor) -> object:
        if _layout(kept) == layout:
            return node
        return kept

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        x, *grid = packed.saved_tensors
        with torch.no_grad():
            return _quantize(x, _Grid(*grid))

    return saved_tensors_hooks(pack, unpack)


def _layout(x: Tensor) -> tuple:
    return x.data_ptr(), x.dtype, x.shape, x.stride()


class _Grid(NamedTuple):
    """Where the grid points lie; all tensors broadcast to what is quantized.

    Attributes:
        lower: Lower end of the clipping range.
        upper: Upper end.
        highest: Highest grid index.
        scale: Distance of the grid points of integers; None where the ends are grid points.
    """

    lower: Tensor
    upper: Tensor
    highest: Tensor
    scale: Tensor | None = None

    def tensors(self) -> Sequence[Tensor]:
        """What makes up the grid: three tensors, or four of integers."""
        return [tensor for tensor in self if tensor is not None]

    def ends(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest grid point."""
        if self.scale is None:
            return self.lower, self.upper
        _, zero_point = integer_grid(self.lower, self.upper, self.highest)
        return -zero_point * self.scale, (self.highest - zero_point) * self.scale


class _FakeQuantize(torch.autograd.Function):
    """`fake_quantize` as one operation, which keeps nothing but its input for the backward pass.

    With ``x_c`` the clipped input and ``x_q`` the result, the gradient of the plain chain of
    operations is ``d x_q / d upper = [x > upper] + (x_q - x_c) / (upper - lower)``, the mirror
    image of it for ``lower``, and ``d x_q / d highest = -(x_q - x_c) / highest``. So everything
    follows from the input again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        lower: Tensor,
        upper: Tensor,
        highest: Tensor,
        scale: Tensor | None,
    ) -> Tensor:
        grid = _Grid(lower, upper, highest, scale)
        ctx.save_for_backward(x, *grid.tensors())
        return _quantize(x, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        grid = _Grid(*tensors)
        learned = any(ctx.needs_input_grad[1:4])
        gradients: Sequence[Tensor | None] | None = None
        kernels = _kernels_for(x)
        if kernels is not None:
            gradients = _fused_gradients(kernels, grad, x, grid, learned)
        if gradients is None:
            gradients = _gradients(grad, x, grid, learned)
        # The scale was detached.
        found: list[Tensor | None] = [*gradients, None]
        for index, needed in enumerate(ctx.needs_input_grad):
            if not needed:
                found[index] = None
        return tuple(found)


def _gradients(grad: Tensor, x: Tensor, grid: _Grid, learned: bool) -> Sequence[Tensor]:
    """Gradients of input, lower end, upper end and highest index.

    Args:
        grad: Gradient of the result.
        x: The input.
        grid: Where it was rounded to.
        learned: Whether gradients of the grid are asked for; they are zeros where not.
    """
    grad_x = torch.empty_like(grad)
    of_lower = torch.zeros_like(grid.lower)
    of_upper = torch.zeros_like(grid.upper)
    of_highest = torch.zeros_like(grid.highest)
    for piece in _pieces(grad, x, grad_x, of_lower, of_upper, of_highest, *grid.tensors()):
        grad_piece, x_piece, grad_x_piece = piece[:3]
        grid_piece = _Grid(*piece[6:])
        first, last = grid_piece.ends()
        clipped = _clip(x_piece, first, last)
        inside = torch.eq(clipped, x_piece, out=grad_x_piece)
        torch.mul(grad_piece, inside, out=grad_x_piece)
        if learned:
            _add_gradients(piece[3:6], grad_piece, x_piece, clipped, grid_piece)
    return grad_x, of_lower, of_upper, of_highest


def _add_gradients(
    totals: Sequence[Tensor], grad: Tensor, x: Tensor, clipped: Tensor, grid: _Grid
) -> None:
    """Add the gradients of lower end, upper end and highest index to ``totals``, in this order.

    Comparisons are made into floats: on CPUs these are vectorised, boolean masks are not. That
    moving a range to the integer grid changes its ends counts as rounding.
    """
    of_lower, of_upper, of_highest = totals
    first, last = grid.ends()
    rounding = _quantize_piece(x, grid).sub_(clipped).mul_(grad)
    share_of_highest, share_of_width = _shares_of_rounding(rounding, grid)
    of_highest -= share_of_highest
    above = torch.gt(x, last, out=clipped).mul_(grad)
    of_upper += above.sum_to_size(of_upper.shape) + share_of_width
    below = torch.lt(x, first, out=clipped).mul_(grad)
    of_lower += below.sum_to_size(of_lower.shape) - share_of_width


def _shares_of_rounding(rounding: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """How a loss falls with the highest index, and how it grows with the width of the range.

    Args:
        rounding: Rounding errors times gradients of the result, or sums of them; broadcastable to
            the input.
        grid: Where it was rounded to.
    """
    width = range_width(grid.lower, grid.upper, integer=grid.scale is not None)
    of_highest = rounding.sum_to_size(grid.highest.shape) / grid.highest
    return of_highest, rounding.sum_to_size(grid.upper.shape) / width


# Kernels of GPUs


def _kernels_for(x: Tensor) -> Any:
    """The module `triton_kernels`, where its kernels may take ``x``; else None."""
    if not x.is_cuda:
        return None
    return _kernels_of(x.device)


@functools.cache
def _kernels_of(device: torch.device) -> Any:
    """The module `triton_kernels`, where its kernels run on a device; else None."""
    try:
        kernels = importlib.import_module(KERNELS)
    except ImportError:
        # Triton isn't made for every system.
        return None
    try:
        problem = "" if _are_right(kernels, device) else "it computes something else"
    except Exception as error:  # it compiles, with whatever compilers there are
        # Compilers give many lines, of which the first may be a place alone.
        problem = f"{type(error).__name__}: {one_line(error)[:200]}"
    if problem:
        LOGGER.warning(
            f"Fake quantization on {device} takes several kernels instead of one, which is slower: "
            f"Triton fails there: {problem}"
        )
        return None
    return kernels


def _are_right(kernels: Any, device: torch.device) -> bool:
    """Whether kernels compute on a device what PyTorch's operations compute."""
    x = torch.linspace(-2, 2, 101, device=device)
    one = torch.ones(1, device=device)
    grid = _Grid(-one, one, 15 * one)
    out = torch.empty_like(x)
    _quantize_fused(kernels, out, x, grid)
    expected = _gradients(x, x, grid, learned=True)
    found = _fused_gradients(kernels, x, x, grid, learned=True)
    assert found is not None
    are_right = torch.allclose(out, _quantize_piece(x, grid))
    for gradient, of_operations in zip(found, expected, strict=True):
        assert gradient is not None
        are_right &= torch.allclose(gradient, of_operations, rtol=1e-4, atol=1e-4)
    return are_right


def _quantize_fused(kernels: Any, out: Tensor, x: Tensor, grid: _Grid) -> bool:
    """Write ``x`` at grid points to ``out``, which is like it; whether there is a kernel for it."""
    out, x, *tensors = _permuted(_memory_order(out), out, x, *grid.tensors())
    layout = kernels.find_layout(x, tensors)
    if layout is None:
        return False
    kernels.quantize(out, x, tensors, layout)
    return True


def _fused_gradients(
    kernels: Any, grad: Tensor, x: Tensor, grid: _Grid, learned: bool
) -> Sequence[Tensor | None] | None:
    """What `_gradients` gives; None where there is no kernel for it, and for what isn't learned."""
    if grad.shape != x.shape or grad.dtype != x.dtype:
        return None
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    grad_x = torch.empty_like(x)
    order = _memory_order(x)
    views = _permuted(order, grad_x, grad, x, *grid.tensors())
    layout = kernels.find_layout(views[2], views[3:])
    if layout is None:
        return None
    sums = kernels.gradients(*views[:3], views[3:], layout, learned)
    if sums is None:
        return grad_x, None, None, None
    back = sorted(range(x.dim()), key=lambda axis: order[axis])
    rounding, above, below = (of_cells.permute(back) for of_cells in sums)
    share_of_highest, share_of_width = _shares_of_rounding(rounding, grid)
    of_upper = above.sum_to_size(grid.upper.shape) + share_of_width
    of_lower = below.sum_to_size(grid.lower.shape) - share_of_width
    return grad_x, of_lower, of_upper, -share_of_highest


# Operations of PyTorch


def _quantize(x: Tensor, grid: _Grid) -> Tensor:
    tensors = grid.tensors()
    shapes = [tensor.shape for tensor in tensors]
    x = x.expand(torch.broadcast_shapes(x.shape, *shapes))
    out = torch.empty_like(x)
    kernels = _kernels_for(x)
    if kernels is None or not _quantize_fused(kernels, out, x, grid):
        for out_piece, x_piece, *grid_piece in _pieces(out, x, *tensors):
            _quantize_piece(x_piece, _Grid(*grid_piece), out_piece)
    return out


def _quantize_piece(x: Tensor, grid: _Grid, out: Tensor | None = None) -> Tensor:
    lower, upper, highest, scale = grid
    if scale is not None:
        _, zero_point = integer_grid(lower, upper, highest)
        out = torch.div(x, scale, out=out).round_()
        return _clip(out, -zero_point, highest - zero_point, out=out).mul_(scale)
    # The order of the operations is the published one: another would round a few values the
    # other way.
    width = range_width(lower, upper)
    out = _clip(x, lower, upper, out=out)
    out.sub_(lower).div_(width).mul_(highest).round_()
    return out.div_(highest).mul_(width).add_(lower)


def _clip(x: Tensor, lower: Tensor, upper: Tensor, out: Tensor | None = None) -> Tensor:
    # Unlike torch.clamp with tensors, these are vectorised on CPUs.
    out = torch.maximum(x, lower, out=out)
    return torch.minimum(out, upper, out=out)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors that broadcast to the first alike, into pieces of about `PIECE` values.

    The cuts are along the two outermost axes of the first tensor's memory.
    """
    like = tensors[0]
    if like.numel() <= PIECE or like.dim() < 2:
        yield tensors
        return
    views = _permuted(_memory_order(like), *tensors)
    shape = views[0].shape
    samples = max(PIECE // shape[1:].numel(), 1)
    rows = max(PIECE // shape[2:].numel(), 1)
    for sample in range(0, shape[0], samples):
        of_samples = [_cut(view, 0, sample, samples) for view in views]
        for row in range(0, shape[1], rows):
            yield tuple(_cut(view, 1, row, rows) for view in of_samples)


def _memory_order(x: Tensor) -> Sequence[int]:
    """The axes of a tensor, from the outermost in memory to the innermost."""
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda axis: strides[axis], reverse=True)


def _permuted(order: Sequence[int], *tensors: Tensor) -> list[Tensor]:
    """Views with axes in this order, of tensors that broadcast to one with so many axes."""
    views = []
    for tensor in tensors:
        missing = len(order) - tensor.dim()
        view = tensor.reshape((1,) * missing + tensor.shape)
        views.append(view.permute(list(order)))
    return views


def _cut(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """What ``x`` has from ``start`` on along ``axis``; all of it where it is broadcast along it."""
    size = x.shape[axis]
    if size == 1:
        return x
    return x.narrow(axis, start, min(length, size - start))
