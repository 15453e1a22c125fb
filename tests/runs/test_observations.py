"""What a validation set shows of a network."""

import subprocess
import sys

import pytest
import torch
from conftest import photograph

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.runs.observations import Observations, bit_map


@pytest.fixture(scope="module")
def image():
    """A photograph that is flat on its right, ``(1, 3, 40, 60)`` in 0..1."""
    pixels = torch.from_numpy(photograph(40, 60)).permute(2, 0, 1)[None] / 255
    pixels[..., 35:] = 0.5
    return pixels


def calibrated(network, image, recipe, **options):
    net = quantize(network, image, recipe=recipe, w_bits=4, a_bits=4, **options)
    patches = [image[..., left : left + 20] for left in (0, 10, 25, 40)]
    return calibrate(net, [torch.cat(patches)])


@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_each_tile_has_the_class_and_bits_of_its_own(recipe, tiny, image):
    net = calibrated(tiny, image, recipe, ingredients={"image_bits": [-1, 1]})
    found = bit_map(net, "photograph", image)
    assert (found["image"], found["tile"]) == ("photograph", 8)
    assert len(found["classes"]) == 5
    assert [len(row) for row in found["classes"]] == [8] * 5
    tile = image[..., 16:24, 56:]
    assert found["classes"][2][7] == int(net.image_mapping(tile)) + 1 == 0
    assert found["bits"][2][7] == float(net.bits_for(tile))
    for classes, bits in zip(found["classes"], found["bits"], strict=True):
        expected = [found["class_facts"][image_class]["bits"] for image_class in classes]
        assert bits == pytest.approx(expected)


def test_networks_of_fixed_bits_have_no_map(tiny, image):
    assert bit_map(calibrated(tiny, image, "static"), "photograph", image) is None


def test_costs_and_bits_of_images(tiny, image):
    net = calibrated(tiny, image, "paper")
    metrics = {"self_psnr": {"type": "calculate_self_psnr"}}
    with torch.no_grad(), Observations(net, "Val", 2, net, self_psnr=metrics) as observed:
        for name, part in (("left", image[..., :30]), ("whole", image)):
            observed.note(name, part, observed.upscale(part))
    left, whole = observed.images
    assert whole["float_bitops"] == 2 * left["float_bitops"]
    assert left["bits"] == float(net.bits_for(image[..., :30]))
    assert 20 < whole["self_psnr"] < 80
    means = observed.means()
    assert means["bitops"] == pytest.approx((left["bitops"] + whole["bitops"]) / 2)
    counted = [q for q in net.activation_quantizers().values() if not q.fixed]
    assert sum(observed.bit_counts.values()) == 2 * len(counted)
    assert observed.facts()["bit_map"]["image"] == "whole"


def test_tiles_cost_their_overlap(tiny, image):
    options = {"tile": 20, "tile_overlap": 4}
    with torch.no_grad(), Observations(tiny, "Val", 1, tiny, options) as observed:
        output = observed.upscale(image)
        passes = len(observed.passes)
        observed.note("whole", image, output)
    assert output.shape == (1, 3, 80, 120)
    without_overlap = 6
    assert passes > without_overlap
    assert observed.facts()["bit_map"] is None
    assert observed.bit_counts == {}


def test_its_module_may_be_the_first_one_that_is_imported():
    # It imports BasicSR, whose import registers what takes from this module.
    subprocess.run([sys.executable, "-c", f"import {Observations.__module__}"], check=True)
