"""Targets choose the bits."""

import pytest
import torch

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.calibration.budget import cost_share
from adabm_basicsr.quantization.calibration.calibrate import representative
from adabm_basicsr.quantization.measures.psnr import self_psnr

IMAGES = torch.nn.functional.interpolate(
    torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)), size=24, mode="bicubic"
).clamp(0, 1)


def reached(tiny, **target):
    net = quantize(tiny, IMAGES[:1], recipe="fast", fully_quantized=True, target=target)
    return calibrate(net, [IMAGES])


@pytest.mark.parametrize(("kind", "shares"), [("bitops", (0.05, 0.06)), ("size", (0.2, 0.23))])
def test_costs_stay_within_the_target_and_use_it(tiny, kind, shares):
    for share in shares:
        net = reached(tiny, **{kind: share})
        assert 0.85 * share < cost_share(net, kind, IMAGES) <= share


def total_bits(net):
    return sum(q.bits_of_layer().item() for q in net.activation_quantizers().values())


def test_self_psnr_is_reached_with_fewer_bits_for_less(tiny):
    nets = [reached(tiny, self_psnr=wanted) for wanted in (34, 44)]
    psnr = [self_psnr(net, representative([IMAGES])) for net in nets]
    assert 34 <= psnr[0] < 40
    assert 44 <= psnr[1] < 50
    assert total_bits(nets[0]) < total_bits(nets[1])


def test_costs_out_of_reach_say_what_is_possible(tiny):
    with pytest.raises(AdaBMError, match="is out of reach: at 2 bits the share is"):
        reached(tiny, size=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": {"psnr": 40}}, "target: unknown key 'psnr'.*self_psnr"),
        (
            {"target": {"size": 1.5}},
            "target: size: 1.5 is out of range; valid: above 0 and below 1",
        ),
        (
            {"target": {"size": 0.2, "bitops": 0.1}},
            "is not one of self_psnr, psnr_drop, bitops, size",
        ),
        (
            {"target": {"size": 0.2}, "recipe": "paper"},
            "recipe 'paper' doesn't allocate bits; valid: best, fast, thorough",
        ),
        ({"ingredients": {"alocate": True}}, "ingredients: unknown key 'alocate'.*allocate"),
        (
            {"ingredients": {"allocate": "yes"}},
            "ingredients: allocate: 'yes' is not of the kind of True",
        ),
        (
            {"ingredients": {"phases": ["distilation"]}},
            "phases: unknown value 'distilation'.*distillation",
        ),
        ({"ingredients": {"image_bits": [1, -1]}}, "is not a pair of numbers in ascending order"),
        (
            {"ingredients": {"image_percentiles": [-1, 2]}},
            r"ingredients: image_percentiles: \[-1, 2\] is out of range; valid: 0 to 1",
        ),
        (
            {"ingredients": {"bit_range": [8, 8]}},
            r"ingredients: bit_range: \[8, 8\] leaves out a_bits: 4",
        ),
        ({"ingredients": [1]}, "is not a mapping"),
    ],
)
def test_mistakes_are_named(tiny, options, message):
    with pytest.raises(AdaBMError, match=message):
        quantize(tiny, IMAGES[:1], **options)
