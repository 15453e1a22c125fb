"""The most complex images run in full precision, beside others that are quantized."""

import copy

import pytest
import torch
from conftest import TINY_EDSR, photographs
from torch import nn

from adabm_basicsr import (
    AdaBMError,
    calibrate,
    load_checkpoint,
    load_network,
    quantize,
    save_checkpoint,
)
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.measures.cost import CostMeter, size_bytes
from adabm_basicsr.quantization.measures.psnr import self_errors
from adabm_basicsr.quantization.measures.summary import summarize

IMAGES = photographs(8, 24)
OPTIONS = {"recipe": "fast", "fully_quantized": True, "w_bits": 6, "a_bits": 6}


def network(**options):
    torch.manual_seed(0)
    return AdaBMNetwork(network=dict(TINY_EDSR), **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def quantized():
    return calibrate(network(), [IMAGES])


@pytest.fixture(scope="module")
def quarter():
    """A network that runs the most complex quarter of the images in full precision."""
    return calibrate(network(full_precision_images=0.25), [IMAGES])


def most_complex(count):
    return image_complexity(IMAGES).argsort(descending=True)[:count]


def test_most_complex_share_of_the_images_runs_in_full_precision(quarter):
    chosen = quarter.in_full_precision(IMAGES)
    assert sorted(chosen.nonzero().flatten().tolist()) == sorted(most_complex(2).tolist())
    errors = self_errors(quarter, IMAGES)
    assert torch.equal(errors == 0, chosen)


def test_other_images_are_as_without_it(quarter, quantized):
    chosen = quarter.in_full_precision(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(quarter(IMAGES)[~chosen], quantized(IMAGES)[~chosen])
        with quantized.full_precision():
            torch.testing.assert_close(quarter(IMAGES)[chosen], quantized(IMAGES)[chosen])


def test_images_in_full_precision_count_as_such(quarter, quantized):
    chosen = quarter.in_full_precision(IMAGES)
    bits = quarter.bits_for(IMAGES)
    assert bits[chosen].tolist() == [32, 32]
    torch.testing.assert_close(bits[~chosen], quantized.bits_for(IMAGES)[~chosen])
    costs = []
    for net in (quarter, quantized):
        with torch.no_grad(), CostMeter(net) as meter:
            for image in IMAGES.split(1):
                net(image)
                costs.append(meter.read())
    complexity = 2 * 9 * 24 * 24 * 32 * 32  # of a 3x3 kernel for each direction, in float
    for own, other, is_full in zip(costs[:8], costs[8:], chosen.tolist(), strict=True):
        assert own.float_bitops == other.float_bitops
        if is_full:
            assert own.fab == 32
            assert own.bitops == own.float_bitops + 2 * complexity
        else:
            assert own.fab == other.fab
            assert own.bitops == other.bitops + complexity
    with torch.no_grad(), CostMeter(quarter) as meter:
        quarter(IMAGES)
        of_batch = meter.read(8)
    assert of_batch.bitops == pytest.approx(sum(cost.bitops for cost in costs[:8]) / 8)
    assert of_batch.fab == pytest.approx(float(bits.mean()))
    assert summarize(quarter, IMAGES).fab == pytest.approx(float(bits.mean()))


def test_size_is_that_of_both_weights(quarter, quantized):
    weights = sum(layer.weight.numel() for layer in quarter.layers().values())
    corrections = sum(
        quantizer.bias_correction.numel() for quantizer in quarter.weight_quantizers().values()
    )
    assert size_bytes(quarter) - size_bytes(quantized) == 4 * (weights + corrections)


def test_fine_tuning_quantizes_all_images(quarter, quantized):
    with torch.no_grad():
        torch.testing.assert_close(quarter(IMAGES, True).output, quantized(IMAGES))


def test_checkpoint_keeps_it(quarter, tmp_path):
    with torch.no_grad():
        expected = quarter(IMAGES)
    save_checkpoint(quarter, tmp_path / "net.pth")
    by_options = load_checkpoint(network(full_precision_images=0.25), tmp_path / "net.pth")
    for net in (by_options, load_network(tmp_path / "net.pth")):
        assert torch.equal(net.full_precision_above, quarter.full_precision_above)
        with torch.no_grad():
            assert torch.equal(net(IMAGES), expected)


def test_checkpoint_of_other_images_is_rejected(quarter, quantized, tmp_path):
    save_checkpoint(quarter, tmp_path / "quarter.pth")
    save_checkpoint(quantized, tmp_path / "quantized.pth")
    with pytest.raises(
        AdaBMError,
        match=r"runs complex images in full precision, the options say full_precision_images: 0$",
    ):
        load_checkpoint(network(), tmp_path / "quarter.pth")
    with pytest.raises(
        AdaBMError, match=r"quantizes all images, the options say full_precision_images: 0\.25$"
    ):
        load_checkpoint(network(full_precision_images=0.25), tmp_path / "quantized.pth")
    state = quarter.state_dict()
    state["full_precision_above"] = torch.tensor(float("nan"))
    with pytest.raises(AdaBMError, match="full_precision_above is no complexity"):
        copy.deepcopy(quarter).load_state_dict(state)


def test_module_around_the_network_loads_it(quarter):
    net = nn.DataParallel(network(full_precision_images=0.25))
    net.load_state_dict(nn.DataParallel(quarter).state_dict())
    assert torch.equal(net.module.full_precision_above, quarter.full_precision_above)


def test_damaged_checkpoint_is_rejected(quarter):
    state = quarter.state_dict()
    del state["stage"], state["full_precision_above"]
    with pytest.raises(AdaBMError, match="stage"):
        copy.deepcopy(quarter).load_state_dict(state)


def test_plain_weights_forget_it(quarter):
    net = copy.deepcopy(quarter)
    net.load_state_dict(net.base_state())
    assert net.full_precision_above is None
    assert net.stage == 0


def test_networks_of_fixed_bits_have_it_too():
    net = calibrate(network(recipe="static", full_precision_images=0.5), [IMAGES])
    assert net.image_mapping is None
    assert int((self_errors(net, IMAGES) == 0).sum()) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"full_precision_images": 1}, "full_precision_images: 1 is out of range"),
        ({"full_precision_images": "0.1"}, "full_precision_images: '0.1' is out of range"),
        (
            {"full_precision_images": 0.1, "target": {"self_psnr": 40}},
            "with target: {'self_psnr': 40}: give one of the two",
        ),
        (
            {"full_precision_images": 0.1, "engine": "portable", "a_bits": 8},
            "with engine: portable, whose files hold one graph for all images; valid: engine: open",
        ),
    ],
)
def test_option_is_checked(options, message):
    with pytest.raises(AdaBMError, match=message):
        network(**options)


def test_networks_that_take_clips_have_none():
    with pytest.raises(
        AdaBMError, match=r"full_precision_images: 0\.1, but the network takes clips"
    ):
        quantize(nn.Identity(), torch.rand(1, 3, 3, 8, 8), full_precision_images=0.1)
