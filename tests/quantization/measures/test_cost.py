"""FAB, BitOPs and size, of full precision and quantized."""

import pytest
import torch

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.measures.cost import CostMeter, size_bytes

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def calibrated(network, **options):
    return calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])


def test_cost_of_full_precision_and_quantized(tiny):
    with CostMeter(tiny) as meter:
        tiny(IMAGES[:1])
        whole = meter.read()
        tiny(IMAGES)
        assert meter.read(len(IMAGES)) == whole
    assert whole.fab == 32
    assert whole.bitops / 32 / 32 == sum(quantize(tiny, IMAGES[:1]).structure.macs.values())
    assert not any(module._forward_hooks for module in tiny.modules())


def test_cost_is_the_same_in_inference_mode(tiny):
    with CostMeter(tiny) as meter:
        tiny(IMAGES[:1])
        whole = meter.read()
        with torch.inference_mode():
            tiny(IMAGES[:1])
        assert meter.read() == whole


def test_bitops_follow_image_size_and_bits(tiny):
    net = calibrated(tiny, recipe="static", fully_quantized=True)
    with CostMeter(net) as meter:
        net(IMAGES[:1])
        small = meter.read()
        net(torch.rand(1, 3, 48, 24))
        assert meter.read().bitops == 2 * small.bitops
    macs, plans = net.structure.macs, net.plan.layers
    assert small.bitops == pytest.approx(
        sum(
            net.structure.macs[n] * p.w_bits * p.a_bits * (24 * 24) / IMAGES[0, 0].numel()
            for n, p in plans.items()
        )
    )
    assert len(macs) == len(plans)


def test_size_counts_weights_at_their_bits(tiny):
    net = quantize(tiny, IMAGES[:1], fully_quantized=True, w_bits=4, recipe="paper")
    weights = {name: layer.weight.numel() for name, layer in net.layers().items()}
    packed = sum(n * net.plan.layers[name].w_bits // 8 for name, n in weights.items())
    others = sum(p.numel() for p in net.parameters()) - sum(weights.values())
    assert size_bytes(net) == packed + 4 * others


def test_size_of_corrected_rounding_is_that_of_the_weights(tiny):
    nets = [
        quantize(tiny, IMAGES[:1], fully_quantized=True, w_bits=4, recipe=recipe)
        for recipe in ("static", "best")
    ]
    quantizers = nets[1].activation_quantizers().values()
    adaptive = [q for q in quantizers if q.adaptive]
    thresholds = 2
    learned = sum(q.layer_factor.numel() + q.level_ranges.numel() for q in adaptive) + thresholds
    assert size_bytes(nets[1]) == size_bytes(nets[0]) + 4 * learned
