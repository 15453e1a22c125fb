"""The benchmark of what adaptivity is worth: its choices are the best within the bits."""

import itertools

import adaptivity
import pytest
import torch
from adaptivity import ALL, CLASSES, GOALS, OPTIONS, Option, choose, gains, measure, run_with
from conftest import photographs

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.bit_mapping import image_complexity


@pytest.mark.parametrize("seed", range(5))
def test_choices_are_the_cheapest_within_the_bits(seed):
    torch.manual_seed(seed)
    bits = torch.tensor([3.0, 4.0, 5.0])
    costs = torch.rand(5, 3).sort(descending=True).values  # more bits err less
    sizes = torch.ones(5)
    chosen = choose(costs, bits, sizes, mean=4.0)
    assert bits[chosen].mean() <= 4

    found = costs.gather(1, chosen.unsqueeze(1)).sum()
    used = float(bits[chosen].sum())
    for other in itertools.product(range(3), repeat=5):
        of_other = torch.tensor(other)
        if bits[of_other].sum() <= used:
            # A price of bits gives the best of all choices that use no more of them.
            assert costs.gather(1, of_other.unsqueeze(1)).sum() >= found - 1e-6


def test_a_tile_of_a_large_class_costs_as_much_as_one_of_a_small_class():
    costs = torch.tensor([[2.0, 1.0], [2.0, 0.9]])
    bits = torch.tensor([4.0, 5.0])
    chosen = choose(costs, bits, sizes=torch.tensor([9.0, 1.0]), mean=4.5)
    assert chosen.tolist() == [0, 1]


def test_tiles_show_all_images_evenly():
    images = [torch.full((1, 3, 16, 24), 0.1), torch.full((1, 3, 9, 8), 0.2)]
    assert adaptivity.cut(images, 8, 100).mean((1, 2, 3)).tolist() == pytest.approx(
        [0.1] * 6 + [0.2]
    )
    assert len(adaptivity.cut(images, 8, 3)) == 4


def test_what_errs_less_by_class_is_found():
    """Complex tiles err least with wide ranges, simple ones with narrow ranges."""
    tiles = 60
    complexity = torch.arange(tiles).double()
    errors = torch.full((tiles, len(OPTIONS)), 9.0, dtype=torch.float64)
    narrow = OPTIONS.index(Option(0, 0.8))
    wide = OPTIONS.index(Option(0, 1.25))
    simple = complexity < tiles / CLASSES
    errors[simple, narrow] = 1.0
    errors[~simple, wide] = 1.0
    bits = torch.tensor([4.0 + option.bits for option in OPTIONS])
    lines = gains(errors, bits, complexity)
    for goal in GOALS:
        assert lines["one range for all"][goal] < lines["ranges by class"][goal]
        assert lines["ranges by class"][goal] == pytest.approx(lines["ranges by tile"][goal])
        assert lines["bits by tile"][goal] <= lines["ranges and bits by tile"][goal]


def test_a_network_is_measured_with_all_options_and_stays_as_it_was(tiny):
    images = photographs(4, 16)
    net = quantize(
        tiny,
        images[:1],
        recipe="fast",
        ingredients={"image_bits": [0, 0], "image_ranges": False},
    )
    calibrate(net, [images])
    before = net(images)
    errors, bits = measure(net, images)
    assert torch.equal(net(images), before)
    assert errors.shape == (4, len(OPTIONS))
    assert bits[OPTIONS.index(Option(1, 1.0))] == bits[OPTIONS.index(Option(0, 1.0))] + 1

    with run_with(net, Option(0, 1.6)):
        assert not torch.equal(net(images), before)
    lines = gains(errors, bits, image_complexity(images))
    for name in adaptivity.CHOICES:
        assert set(lines[f"{name} by class"]) == set(GOALS)
    assert len(ALL) == len(OPTIONS)
