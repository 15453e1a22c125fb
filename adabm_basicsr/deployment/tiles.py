"""Large images in overlapping tiles, blended without seams, each tile at the bits of its own complexity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError

DEFAULT_OVERLAP = 16  # pixels of the LR image


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


def check_tiles(where: str, tile: int, overlap: int) -> None:
    """Raise `AdaBMError` if tiles of this size and overlap can't cover an image; ``where`` names the options."""
    for name, value, least in (("tile", tile, 1), ("tile_overlap", overlap, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise AdaBMError(
                f"{where}: {name}: {value!r} is not a whole number of at least {least}"
            )
    if 3 * overlap > tile:
        raise AdaBMError(
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
        overlap: Pixels that neighbouring tiles share, at most a third of ``tile``; they are blended over these.
        batch: Tiles that are computed at once, where they are of one size.

    Returns:
        ``(1, C', s * H, s * W)``.

    Raises:
        AdaBMError: ``tile`` or ``overlap`` is out of range.
    """
    blocks = finished_blocks(network, image, tile, overlap, batch)
    rows = [
        torch.cat([block.pixels for block in row], 3)
        for _, row in groupby(blocks, key=attrgetter("top"))
    ]
    return torch.cat(rows, 2)


def finished_blocks(
    network: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int, batch: int = 1
) -> Iterator[Block]:
    """Parts of the output in reading order, which cover it once; arguments and errors as those of `upscale_tiles`.

    All that is kept meanwhile is what the next tile and the next row of tiles overlap with.
    """
    check_tiles("tiles", tile, overlap)
    height, width = image.shape[2:]
    columns, below = _spans(width, tile, overlap), []
    for top, bottom in _spans(height, tile, overlap):
        above, below, beside = below, [], None
        outputs = _row_of_tiles(network, image[:, :, top:bottom], columns, batch)
        for index, ((left, right), output) in enumerate(zip(columns, outputs)):
            scale = _scale(output, right - left)
            reach = overlap * scale
            part = output * _weights(
                output, reach, top > 0, bottom < height, left > 0, right < width
            )
            if beside is not None:
                part[..., :reach] += beside
            if right < width:
                part, beside = _split(part, reach, 3)
            if top > 0:
                part[:, :, :reach] += above[index]
            if bottom < height:
                part, kept = _split(part, reach, 2)
                below.append(kept)
            yield Block(top * scale, left * scale, part, scale)


def _spans(size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end of the fewest tiles that cover ``size`` pixels; all but the last are of one size."""
    count = -(-(size - overlap) // (tile - overlap)) if size > tile else 1
    length = -(-(size + (count - 1) * overlap) // count)
    starts = range(0, size - overlap, length - overlap) if count > 1 else (0,)
    return [(start, min(start + length, size)) for start in starts]


def _row_of_tiles(
    network, row: Tensor, columns: list[tuple[int, int]], batch: int
) -> Iterator[Tensor]:
    """Outputs of the tiles of a row of the image, each ``(1, C', h, w)``; those of one width run together."""
    for _, same in groupby(columns, key=lambda span: span[1] - span[0]):
        same = list(same)
        for start in range(0, len(same), batch):
            tiles = torch.cat([row[..., left:right] for left, right in same[start : start + batch]])
            yield from network(tiles).split(1)


def _scale(output: Tensor, width: int) -> int:
    scale, left = divmod(output.shape[3], width)
    if left or not scale:
        raise AdaBMError(
            f"tiles: {width} pixels become {output.shape[3]}; only whole scales can be put together"
        )
    return scale


def _split(part: Tensor, reach: int, axis: int) -> tuple[Tensor, Tensor]:
    """All but the last ``reach`` rows or columns, and a copy of these: a view would keep the whole part in memory."""
    length = part.shape[axis] - reach
    return part.narrow(axis, 0, length), part.narrow(axis, length, reach).clone()


def _weights(
    output: Tensor, reach: int, top: bool, bottom: bool, left: bool, right: bool
) -> Tensor:
    """Weight of each pixel of a tile: falls off linearly towards those sides where another tile follows."""
    down = _ramps(output.shape[2], reach, top, bottom).to(output)
    return down.unsqueeze(1) * _ramps(output.shape[3], reach, left, right).to(output)


def _ramps(length: int, reach: int, first: bool, last: bool) -> Tensor:
    weights, ramp = torch.ones(length), (torch.arange(reach) + 0.5) / max(reach, 1)
    if first:
        weights[:reach] = ramp
    if last:
        weights[length - reach :] = 1 - ramp
    return weights
