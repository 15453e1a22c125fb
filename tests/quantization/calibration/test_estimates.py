"""What quantizers cost of the image, and what bits come to, hold against calibration."""

import pytest
from analysed import IMAGES, OPTIONS

from adabm_basicsr import analyse, calibrate, quantize
from adabm_basicsr.quantization.calibration.budget import cost_share
from adabm_basicsr.quantization.calibration.estimates import MEASURED_BITS
from adabm_basicsr.quantization.measures.psnr import self_psnr


def setting_of(analysis, w_bits, a_bits):
    for setting in analysis.settings:
        if (setting.w_bits, setting.a_bits) == (w_bits, a_bits):
            return setting
    raise KeyError((w_bits, a_bits))


@pytest.mark.parametrize(("w_bits", "a_bits"), [(8, 8), (4, 8), (6, 6), (4, 4)])
def test_calibration_reaches_what_was_estimated(tiny, analysis, w_bits, a_bits):
    options = {**OPTIONS, "w_bits": w_bits, "a_bits": a_bits}
    net = calibrate(quantize(tiny, IMAGES[:1], **options), [IMAGES])
    setting = setting_of(analysis, w_bits, a_bits)
    assert setting.self_psnr == pytest.approx(self_psnr(net, IMAGES), abs=2)
    # Finding the class of an image costs something too, of such a small network.
    assert setting.bitops_share == pytest.approx(cost_share(net, "bitops", IMAGES), rel=0.1)
    assert setting.size_share == pytest.approx(cost_share(net, "size", IMAGES), rel=0.05)


def test_layers_lose_more_at_fewer_bits_and_share_the_error(analysis):
    assert len(analysis.layers) == 8
    for layer in analysis.layers:
        psnr = [layer.self_psnr[bits] for bits in MEASURED_BITS]
        assert psnr == sorted(psnr, reverse=True)
        assert 0 < layer.input_share < 1
    assert sum(layer.error_share for layer in analysis.layers) == pytest.approx(1)


@pytest.mark.parametrize(("engine", "most"), [("onnxruntime", 8), ("portable", 7)])
def test_bits_are_those_that_the_engine_has(tiny, engine, most):
    options = {**OPTIONS, "engine": engine, "w_bits": 4, "a_bits": 8}
    found = analyse(tiny, IMAGES, **options)
    assert {setting.a_bits for setting in found.settings} == {8}
    assert [setting.w_bits for setting in found.settings] == list(range(2, most + 1))
    assert found.engine == engine
    # Values that sums take are quantized too.
    assert {layer.role for layer in found.layers} >= {"sum"}


@pytest.mark.parametrize("recipe", ["static", "paper"])
def test_recipes_of_fixed_bits_are_analysed_too(tiny, recipe):
    found = analyse(tiny, IMAGES, recipe=recipe)
    psnr = [setting.self_psnr for setting in found.settings if setting.curve == "8"]
    assert psnr == sorted(psnr)
