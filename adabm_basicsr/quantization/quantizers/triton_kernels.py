"""`fake_quantize` in one kernel forwards and one backwards, for GPUs.

PyTorch's own operations go over a tensor once each: about six times forwards and a dozen times
backwards, which on a GPU is most of what quantization costs. Here each value is read once. The
order of operations is that of `fake_quantize`, so values come to the same grid points.

Triton comes with PyTorch's CUDA wheels, and nothing but `fake_quantize` imports this module: only
once there is a tensor on a GPU. Each kernel compiles in half a second, whatever the shapes are;
`torch.compile` takes longer than recipes do, and begins anew with other shapes.

What shares a grid is a *cell* of the tensor: all of it, a sample, a channel, or a channel of a
sample. A cell has *places*, one for each value. A program of a kernel works on a tile of some
places of some cells, and adds up what the ends of their ranges need. Tiles are added up afterwards,
in a fixed order: the same run gives the same gradients.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from adabm_basicsr.quantization.quantizers.fake_quantize import MIN_WIDTH

# Cells and places of a tile: where the values of a cell lie side by side, and where channels do.
ONE_CELL = (1, 1024)
MANY_CELLS = (64, 16)
MOST_VALUES = 2**30  # whose places 32 bits hold
_MIN_WIDTH = tl.constexpr(MIN_WIDTH)
# float32 has no fractions from here on: adding it rounds to whole numbers, halves to even ones.
_NO_FRACTIONS = tl.constexpr(1.5 * 2**23)


class Layout(NamedTuple):
    """Where the cells of a tensor lie in memory, and the places of each cell.

    Both are counted along two axes at most, of which the inner one runs faster.

    Attributes:
        cells: Number of cells.
        inner_cells: Length of the inner axis of cells.
        outer_cell_stride: Values from one cell to the next along the outer axis.
        inner_cell_stride: The same along the inner axis.
        places: Number of places of a cell.
        inner_places: Length of the inner axis of places.
        outer_place_stride: Values from one place to the next along the outer axis.
        inner_place_stride: The same along the inner axis.
    """

    cells: int
    inner_cells: int
    outer_cell_stride: int
    inner_cell_stride: int
    places: int
    inner_places: int
    outer_place_stride: int
    inner_place_stride: int

    @property
    def tile(self) -> tuple[int, int]:
        """Cells and places of a tile whose values lie side by side."""
        if self.cells > 1 and self.inner_cell_stride == 1:
            return MANY_CELLS
        return ONE_CELL


def find_layout(x: Tensor, tensors: Sequence[Tensor]) -> Layout | None:
    """Where the cells of a tensor lie; None of one that the kernels don't take.

    Args:
        x: What is quantized, with axes in the order of its memory.
        tensors: What makes up the grid; they have as many axes, and broadcast to ``x``.
    """
    for tensor in (x, *tensors):
        if tensor.dtype is not torch.float32 or tensor.device != x.device:
            return None
    if not x.is_contiguous() or not 0 < x.numel() <= MOST_VALUES:
        return None
    cell_shape = torch.broadcast_shapes(*[tensor.shape for tensor in tensors])
    axes: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    latest: bool | None = None
    for size, stride, cells in zip(x.shape, x.stride(), cell_shape, strict=True):
        if size == 1:
            continue
        is_of_cells = cells > 1
        length = size
        if latest == is_of_cells:
            # It goes on in memory where the axis before it ends.
            before, _ = axes[is_of_cells].pop()
            length *= before
        axes[is_of_cells].append((length, stride))
        latest = is_of_cells
    if max(len(axes[True]), len(axes[False])) > 2:
        return None
    return Layout(*_numbers(axes[True]), *_numbers(axes[False]))


def _numbers(axes: Sequence[tuple[int, int]]) -> tuple[int, int, int, int]:
    """Of two axes at most their product, the inner length, the outer and the inner stride."""
    missing = 2 - len(axes)
    (outer, outer_stride), (inner, inner_stride) = [*[(1, 0)] * missing, *axes]
    return outer * inner, inner, outer_stride, inner_stride


def quantize(out: Tensor, x: Tensor, tensors: Sequence[Tensor], layout: Layout) -> None:
    """Write ``x``, brought to grid points, to ``out``.

    Args:
        out: Of the shape and strides of ``x``.
        x: What is quantized, with axes in the order of its memory.
        tensors: Lower end, upper end and highest index of the grid, and the scale of integers.
        layout: What `find_layout` found.
    """
    cells, places = layout.tile
    with torch.cuda.device_of(x):
        _quantize_kernel[(_tiles(layout),)](
            out,
            x,
            _table(tensors),
            *layout,
            IS_INTEGER=len(tensors) == 4,
            TILE_CELLS=cells,
            TILE_PLACES=places,
            enable_fp_fusion=False,
        )


def gradients(
    grad_x: Tensor,
    grad: Tensor,
    x: Tensor,
    tensors: Sequence[Tensor],
    layout: Layout,
    learned: bool,
) -> Tensor | None:
    """Write the gradient of ``x`` to ``grad_x``, and add up what those of the grid are made of.

    Args:
        grad_x: Of the shape and strides of ``x``.
        grad: The gradient of the result, of the same.
        x: What was quantized, with axes in the order of its memory.
        tensors: See `quantize`.
        layout: What `find_layout` found.
        learned: Whether to add up anything.

    Returns:
        ``(3, ...)`` with the shape that ``tensors`` broadcast to: gradient times rounding error,
        gradient above the range, and gradient below it, of each cell. None where nothing is
        learned.
    """
    cells, places = layout.tile
    table = _table(tensors)
    sums = table
    if learned:
        sums = x.new_empty(3, math.ceil(layout.places / places), layout.cells)
    with torch.cuda.device_of(x):
        _gradient_kernel[(_tiles(layout),)](
            grad_x,
            sums,
            grad,
            x,
            table,
            *layout,
            IS_INTEGER=len(tensors) == 4,
            IS_LEARNED=learned,
            TILE_CELLS=cells,
            TILE_PLACES=places,
            enable_fp_fusion=False,
        )
    if not learned:
        return None
    return sums.sum(1).view(3, *table.shape[1:])


def _table(tensors: Sequence[Tensor]) -> Tensor:
    """What makes up the grid of each cell, a row each of ends, highest index and scale."""
    return torch.stack(torch.broadcast_tensors(*tensors))


def _tiles(layout: Layout) -> int:
    cells, places = layout.tile
    return math.ceil(layout.cells / cells) * math.ceil(layout.places / places)


# The kernels. Names in capitals are known when a kernel is compiled.

_LAYOUT = Layout._fields


@triton.jit
def _find_tile(
    cells,
    inner_cells,
    outer_cell_stride,
    inner_cell_stride,
    places,
    inner_places,
    outer_place_stride,
    inner_place_stride,
    TILE_CELLS: tl.constexpr,
    TILE_PLACES: tl.constexpr,
):
    """Cells of this program's tile, its number along the places, and where its values lie."""
    tiles = tl.cdiv(places, TILE_PLACES)
    number = tl.program_id(0) % tiles
    cell = tl.program_id(0) // tiles * TILE_CELLS + tl.arange(0, TILE_CELLS)
    place = number * TILE_PLACES + tl.arange(0, TILE_PLACES)
    of_cell = cell // inner_cells * outer_cell_stride + cell % inner_cells * inner_cell_stride
    of_place = (
        place // inner_places * outer_place_stride + place % inner_places * inner_place_stride
    )
    # Threads go along the last axis first, which is where values lie side by side.
    offsets = of_place[:, None] + of_cell[None, :]
    exists = (place < places)[:, None] & (cell < cells)[None, :]
    return cell, number, offsets, exists


@triton.jit
def _load_grid(table, cell, cells, IS_INTEGER: tl.constexpr):
    """Lower end, upper end, highest index and scale of some cells, ``(1, cells)`` each."""
    exists = cell < cells
    lower = tl.load(table + cell, exists, 0.0)[None, :]
    upper = tl.load(table + cells + cell, exists, 1.0)[None, :]
    highest = tl.load(table + 2 * cells + cell, exists, 1.0)[None, :]
    scale = highest
    if IS_INTEGER:
        scale = tl.load(table + 3 * cells + cell, exists, 1.0)[None, :]
    return lower, upper, highest, scale


@triton.jit
def _round(x):
    """The nearest whole number of a value below 2 ** 22; of halves the even one."""
    return (x + _NO_FRACTIONS) - _NO_FRACTIONS


@triton.jit
def _clip(x, lower, upper):
    x = tl.maximum(x, lower, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, upper, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _zero_point(lower, upper, highest):
    """`integer_grid`'s."""
    lower = tl.minimum(lower, 0.0)
    width = tl.maximum(tl.maximum(upper, 0.0) - lower, _MIN_WIDTH)
    return _round(tl.div_rn(-lower, width) * highest)


@triton.jit
def _on_grid(x, lower, upper, highest, scale, IS_INTEGER: tl.constexpr):
    """Values at grid points."""
    if IS_INTEGER:
        zero_point = _zero_point(lower, upper, highest)
        # Clipped first, as far from zero there are no whole numbers to round to.
        index = _clip(tl.div_rn(x, scale), -zero_point, highest - zero_point)
        quantized = _round(index) * scale
    else:
        width = tl.maximum(upper - lower, _MIN_WIDTH)
        share = tl.div_rn(_clip(x, lower, upper) - lower, width)
        index = _round(share * highest)
        quantized = tl.div_rn(index, highest) * width + lower
    return quantized


@triton.jit(do_not_specialize=_LAYOUT)
def _quantize_kernel(
    out,
    x,
    table,
    cells,
    inner_cells,
    outer_cell_stride,
    inner_cell_stride,
    places,
    inner_places,
    outer_place_stride,
    inner_place_stride,
    IS_INTEGER: tl.constexpr,
    TILE_CELLS: tl.constexpr,
    TILE_PLACES: tl.constexpr,
):
    cell, _, offsets, exists = _find_tile(
        cells,
        inner_cells,
        outer_cell_stride,
        inner_cell_stride,
        places,
        inner_places,
        outer_place_stride,
        inner_place_stride,
        TILE_CELLS,
        TILE_PLACES,
    )
    lower, upper, highest, scale = _load_grid(table, cell, cells, IS_INTEGER)
    values = tl.load(x + offsets, exists, 0.0)
    quantized = _on_grid(values, lower, upper, highest, scale, IS_INTEGER)
    tl.store(out + offsets, quantized, exists)


@triton.jit(do_not_specialize=_LAYOUT)
def _gradient_kernel(
    grad_x,
    sums,
    grad,
    x,
    table,
    cells,
    inner_cells,
    outer_cell_stride,
    inner_cell_stride,
    places,
    inner_places,
    outer_place_stride,
    inner_place_stride,
    IS_INTEGER: tl.constexpr,
    IS_LEARNED: tl.constexpr,
    TILE_CELLS: tl.constexpr,
    TILE_PLACES: tl.constexpr,
):
    cell, number, offsets, exists = _find_tile(
        cells,
        inner_cells,
        outer_cell_stride,
        inner_cell_stride,
        places,
        inner_places,
        outer_place_stride,
        inner_place_stride,
        TILE_CELLS,
        TILE_PLACES,
    )
    lower, upper, highest, scale = _load_grid(table, cell, cells, IS_INTEGER)
    values = tl.load(x + offsets, exists, 0.0)
    # Zero where there is no value, which then adds nothing.
    of_values = tl.load(grad + offsets, exists, 0.0)
    first = lower
    last = upper
    if IS_INTEGER:
        zero_point = _zero_point(lower, upper, highest)
        first = -zero_point * scale
        last = (highest - zero_point) * scale
    clipped = _clip(values, first, last)
    tl.store(grad_x + offsets, of_values * (clipped == values).to(tl.float32), exists)
    if IS_LEARNED:
        quantized = _on_grid(values, lower, upper, highest, scale, IS_INTEGER)
        rounding = tl.sum((quantized - clipped) * of_values, axis=0)
        above = tl.sum((values > last).to(tl.float32) * of_values, axis=0)
        below = tl.sum((values < first).to(tl.float32) * of_values, axis=0)
        # By quantity, by tile along the places, by cell.
        quantity = tl.cdiv(places, TILE_PLACES) * cells
        to = sums + number * cells + cell
        tl.store(to, rounding, cell < cells)
        tl.store(to + quantity, above, cell < cells)
        tl.store(to + 2 * quantity, below, cell < cells)
