"""What a run notes of its network."""

import pytest
import torch
from conftest import photograph

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.runs.facts import describe_classes, describe_network, mean_weight_bits

COMPLEXITIES = (1.0, 0.3, 0.05)  # contrasts of the calibration images


@pytest.fixture(scope="module")
def images():
    """Images of all classes, ``(6, 3, 32, 32)`` in 0..1."""
    made = []
    for seed in range(2):
        pixels = torch.from_numpy(photograph(32, 32, seed)).permute(2, 0, 1) / 255
        for contrast in COMPLEXITIES:
            made.append(0.5 + contrast * (pixels - 0.5))
    return torch.stack(made)


def calibrated(network, images, **options):
    return calibrate(quantize(network, images[:1], w_bits=4, a_bits=4, **options), [images])


def test_classes_of_the_paper_differ_by_a_bit(tiny, images):
    net = calibrated(tiny, images, recipe="paper")
    simple, middle, complex_ = describe_classes(net)
    assert simple["bits"] == middle["bits"] - 1
    assert complex_["bits"] == middle["bits"] + 1
    assert middle["range_factor"] is None


@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_bits_of_a_class_are_those_of_its_images(recipe, tiny, images):
    net = calibrated(tiny, images, recipe=recipe, ingredients={"image_bits": [-1, 1]})
    classes = describe_classes(net)
    of_images = net.image_mapping(images).long() + 1
    assert len(of_images.unique()) > 1
    for image_class, bits in zip(of_images, net.bits_for(images), strict=True):
        assert float(bits) == pytest.approx(classes[image_class]["bits"])


def test_classes_of_the_default_recipe_differ_by_their_ranges(tiny, images):
    net = calibrated(tiny, images, recipe="best")
    simple, middle, complex_ = describe_classes(net)
    assert complex_["bits"] == middle["bits"] == simple["bits"]
    assert net.image_mapping.lower.item() == 0  # no image is simple
    factors = []
    for quantizer in net.activation_quantizers().values():
        if quantizer.level_ranges is not None:
            factors.append(quantizer.level_ranges[2].item())
    assert complex_["smallest_factor"] == min(factors)
    assert complex_["largest_factor"] == max(factors) > 1
    assert complex_["range_factor"] == pytest.approx(sum(factors) / len(factors))


def test_no_quantizer_keeps_a_class(tiny, images):
    net = calibrated(tiny, images, recipe="best")
    with torch.no_grad():
        before = net(images)
        describe_classes(net)
        assert torch.equal(net(images), before)


def test_a_network_in_full_precision(tiny):
    facts = describe_network(tiny, {"type": "EDSR"})
    assert facts["network"] == "EDSR"
    assert facts["recipe"] is None
    assert facts["size"]["bytes"] == sum(4 * p.numel() for p in tiny.parameters())


def test_mean_weight_bits_leave_out_fixed_layers(tiny, images):
    assert mean_weight_bits(calibrated(tiny, images, recipe="static")) == 4
