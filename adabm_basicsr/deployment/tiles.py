"""Large images in overlapping tiles, blended without seams, each tile at its own bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError, OptionError

DEFAULT_OVERLAP = 16  # pixels of the LR image
ROWS = 2  # axes of an image
COLUMNS = 3


class Block(NamedTuple):
    """A finished part of the output.

    Attributes:
        top: Its first row in the output.
        left: Its first column.
        pixels: ``(1, C', h, w)``.
        scale: Of the output against the image.
    """

    top: int
    left: int
    pixels: Tensor
    scale: int


class Span(NamedTuple):
    """Where a tile lies along one axis of the image.

    Attributes:
        start: Its first pixel.
        stop: The pixel behind its last one.
        is_first: Whether no tile comes before it.
        is_last: Whether none comes after it.
    """

    start: int
    stop: int
    is_first: bool
    is_last: bool

    @property
    def length(self) -> int:
        """Pixels of the tile."""
        return self.stop - self.start


def check_tiles(where: str, tile: int, overlap: int) -> None:
    """Check that tiles can cover an image.

    Args:
        where: Names the section of the options, for the message.
        tile: Largest height and width of a tile.
        overlap: Pixels that neighbouring tiles share.

    Raises:
        OptionError: They can't.
    """
    for name, value, least in (("tile", tile, 1), ("tile_overlap", overlap, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(
                f"{where}: {name}: {value!r} is not a whole number of at least {least}"
            )
    if 3 * overlap > tile:
        raise OptionError(
            f"{where}: tile_overlap: {overlap} is more than a third of the tile, {tile}"
        )


def upscale_tiles(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int,
    overlap: int = DEFAULT_OVERLAP,
    batch: int = 1,
) -> Tensor:
    """Super-resolve an image tile by tile.

    Args:
        network: Maps ``(B, C, h, w)`` to ``(B, C', s * h, s * w)``.
        image: ``(1, C, H, W)`` in 0..1.
        tile: Largest height and width of a tile, in pixels of ``image``.
        overlap: Pixels that neighbouring tiles share, at most a third of ``tile``; they are blended
            over these.
        batch: Tiles that are computed at once, where they are of one size.

    Returns:
        ``(1, C', s * H, s * W)``.

    Raises:
        AdaBMError: ``tile`` or ``overlap`` is out of range.
    """
    blocks = finished_blocks(network, image, tile, overlap, batch)
    rows = []
    for _, blocks_of_row in groupby(blocks, key=attrgetter("top")):
        rows.append(torch.cat([block.pixels for block in blocks_of_row], COLUMNS))
    return torch.cat(rows, ROWS)


def finished_blocks(
    network: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int, batch: int = 1
) -> Iterator[Block]:
    """Parts of the output in reading order, which cover it once.

    All that is kept meanwhile is what the next tile and the next row of tiles overlap with.
    Arguments and errors are those of `upscale_tiles`.
    """
    check_tiles("tiles", tile, overlap)
    height, width = image.shape[2:]
    columns = _spans(width, tile, overlap)
    below: list[Tensor] = []  # what each tile of the row before shares with the one below it
    for row in _spans(height, tile, overlap):
        above = below
        below = []
        beside: Tensor | None = None  # what the tile before shares with the next one
        outputs = _row_of_tiles(network, image[:, :, row.start : row.stop], columns, batch)
        for index, (column, output) in enumerate(zip(columns, outputs, strict=True)):
            scale = _scale(output, column.length)
            reach = overlap * scale
            part = output * _weights(output, reach, row, column)
            if beside is not None:
                part[..., :reach] += beside
            if not column.is_last:
                part, beside = _split(part, reach, COLUMNS)
            if not row.is_first:
                part[:, :, :reach] += above[index]
            if not row.is_last:
                part, kept = _split(part, reach, ROWS)
                below.append(kept)
            yield Block(row.start * scale, column.start * scale, part, scale)


def _spans(size: int, tile: int, overlap: int) -> list[Span]:
    """The fewest tiles that cover ``size`` pixels; all but the last are of one length."""
    if size <= tile:
        return [Span(0, size, True, True)]
    count = -(-(size - overlap) // (tile - overlap))
    length = -(-(size + (count - 1) * overlap) // count)
    spans = []
    for start in range(0, size - overlap, length - overlap):
        stop = min(start + length, size)
        spans.append(Span(start, stop, start == 0, stop == size))
    return spans


def _row_of_tiles(
    network: Callable[[Tensor], Tensor], row: Tensor, columns: list[Span], batch: int
) -> Iterator[Tensor]:
    """Outputs of the tiles of a row of the image; those of one width run together.

    Args:
        network: See `upscale_tiles`.
        row: ``(1, C, h, W)``.
        columns: Where the tiles lie in it.
        batch: See `upscale_tiles`.

    Yields:
        ``(1, C', s * h, s * w)``.
    """
    for _, group in groupby(columns, key=attrgetter("length")):
        same = list(group)
        for first in range(0, len(same), batch):
            chosen = same[first : first + batch]
            tiles = [row[..., span.start : span.stop] for span in chosen]
            yield from network(torch.cat(tiles)).split(1)


def _scale(output: Tensor, width: int) -> int:
    scale, rest = divmod(output.shape[COLUMNS], width)
    if rest or not scale:
        raise AdaBMError(
            f"tiles: {width} pixels become {output.shape[COLUMNS]}; only whole scales can be put "
            "together"
        )
    return scale


def _split(part: Tensor, reach: int, axis: int) -> tuple[Tensor, Tensor]:
    """All but the last ``reach`` rows or columns, and a copy of these.

    A view would keep the whole part in memory.
    """
    length = part.shape[axis] - reach
    last = part.narrow(axis, length, reach).clone()
    return part.narrow(axis, 0, length), last


def _weights(output: Tensor, reach: int, row: Span, column: Span) -> Tensor:
    """Weight of each pixel of a tile, ``(h, w)``.

    It falls off linearly towards those sides where another tile follows.
    """
    down = _ramps(output.shape[ROWS], reach, row).to(output)
    across = _ramps(output.shape[COLUMNS], reach, column).to(output)
    return down.unsqueeze(1) * across


def _ramps(length: int, reach: int, span: Span) -> Tensor:
    """Weights along one axis, ``(length,)``."""
    weights = torch.ones(length)
    ramp = (torch.arange(reach) + 0.5) / max(reach, 1)
    if not span.is_first:
        weights[:reach] = ramp
    if not span.is_last:
        weights[length - reach :] = 1 - ramp
    return weights
