"""Tiles: they cover the image once, without seams."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adabm_basicsr import AdaBMError
from adabm_basicsr.deployment.tiles import check_tiles, finished_blocks, upscale_tiles


def enlarge(image):
    return F.interpolate(image, scale_factor=3, mode="nearest")


class Blur(nn.Module):
    """A shift-invariant network x2 that sees two pixels around."""

    def forward(self, image):
        blurred = F.avg_pool2d(F.pad(image, (2, 2, 2, 2)), 5, 1)
        return F.interpolate(blurred, scale_factor=2, mode="nearest")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(0, 13),
    st.integers(1, 4),
)
def test_tiles_cover_any_image_once_and_add_up(height, width, tile, overlap, batch):
    if 3 * overlap > tile:
        overlap = tile // 3
    image = torch.rand(1, 2, height, width, dtype=torch.double)
    torch.testing.assert_close(
        upscale_tiles(enlarge, image, tile, overlap, batch), enlarge(image), atol=1e-6, rtol=0
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 60), st.integers(5, 60), st.integers(12, 40), st.integers(0, 4))
def test_tiles_differ_from_the_whole_near_their_borders_alone(height, width, tile, overlap):
    image, reach = torch.rand(1, 1, height, width), 2 * (2 + overlap)
    tiled, whole = upscale_tiles(Blur(), image, tile, overlap), Blur()(image)
    starts = [
        {block.top for block in finished_blocks(Blur(), image, tile, overlap)},
        {block.left for block in finished_blocks(Blur(), image, tile, overlap)},
    ]
    rows = near_borders(starts[0], whole.shape[2], 2 * reach)
    columns = near_borders(starts[1], whole.shape[3], 2 * reach)
    away = ~(rows[:, None] | columns[None])
    torch.testing.assert_close(tiled[..., away], whole[..., away])


def near_borders(starts, size, distance):
    """Whether each of ``size`` pixels lies near the start of a tile other than the first."""
    near = torch.zeros(size, dtype=torch.bool)
    for start in starts - {0}:
        near[max(start - distance, 0) : start + distance + 1] = True
    return near


def test_more_overlap_brings_tiles_nearer_to_the_whole():
    image = torch.rand(1, 1, 64, 64)
    errors = [
        (upscale_tiles(Blur(), image, 32, overlap) - Blur()(image)).abs().mean()
        for overlap in (0, 4, 8)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_each_tile_is_run_for_itself_or_in_batches():
    sizes = []
    image = torch.rand(1, 3, 20, 50)
    upscale_tiles(lambda x: sizes.append(tuple(x.shape)) or enlarge(x), image, 20, 4, batch=2)
    assert sizes == [(2, 3, 20, 20), (1, 3, 20, 18)]


@pytest.mark.parametrize(
    ("tile", "overlap", "error"),
    [
        (0, 0, "val: tile: 0 is not a whole number of at least 1"),
        ("8", 0, "val: tile: '8' is not a whole number"),
        (8, -1, "val: tile_overlap: -1 is not a whole number of at least 0"),
        (8, 3, "val: tile_overlap: 3 is more than a third of the tile, 8"),
        (8, True, "val: tile_overlap: True is not a whole number"),
    ],
)
def test_mistakes_are_rejected(tile, overlap, error):
    with pytest.raises(AdaBMError, match=error):
        check_tiles("val", tile, overlap)


def test_a_network_without_a_whole_scale_is_refused():
    with pytest.raises(
        AdaBMError, match="8 pixels become 12; only whole scales can be put together"
    ):
        upscale_tiles(lambda x: F.interpolate(x, scale_factor=1.5), torch.rand(1, 1, 8, 8), 16, 4)
