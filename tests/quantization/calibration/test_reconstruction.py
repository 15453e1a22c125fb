"""Ranges and rounding are fitted to each layer's output, and to each class of images."""

import pytest
import torch
import torch.nn.functional as F
from conftest import photographs
from small_networks import Recursive, SharedByBranches, conv
from torch import nn

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.calibration.calibrate import representative
from adabm_basicsr.quantization.calibration.reconstruction import round_compensated
from adabm_basicsr.quantization.measures.psnr import self_psnr

GENERATOR = torch.Generator().manual_seed(0)
SIMPLE = 0.4 + 0.1 * torch.rand(12, 3, 16, 16, generator=GENERATOR)
COMPLEX = torch.rand(6, 3, 16, 16, generator=GENERATOR).round()


@pytest.mark.parametrize("lowest", [-8, -7.5])
def test_compensated_rounding_errs_less_than_rounding_to_the_nearest(lowest):
    rows = torch.randn(1, 4, 30, generator=GENERATOR)
    columns = torch.randn(1, 6, 400, generator=GENERATOR)
    # Inputs that go together.
    columns = torch.randn(1, 30, 6, generator=GENERATOR) @ columns
    moments = columns @ columns.transpose(1, 2)
    scales = rows.abs().amax(2, keepdim=True) / 7
    rounded = round_compensated(rows.clone(), moments, scales, lowest, lowest + 15)
    nearest = ((rows / scales - lowest).round().clamp(0, 15) + lowest) * scales
    indices = rounded / scales - lowest
    torch.testing.assert_close(indices, indices.round())
    assert indices.min() >= 0
    assert indices.max() < 15.5

    def error(weights):
        return ((weights - rows) @ columns).square().mean()

    assert error(rounded) < 0.5 * error(nearest)


@pytest.mark.parametrize("integer", [True, False])
def test_grouped_convolutions_are_reconstructed_with_a_scale_per_channel_or_per_tensor(integer):
    torch.manual_seed(0)
    body = [nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU()]
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *body, nn.Conv2d(16, 3, 3, padding=1))
    errors = []
    for reconstructed in (True, False):
        ingredients = {
            "integer": integer,
            "reconstruct": reconstructed,
            "adaptive": False,
            "allocate": False,
        }
        net = calibrate(quantize(network, COMPLEX[:1], ingredients=ingredients), [COMPLEX])
        with torch.no_grad(), net.full_precision():
            teacher = net(COMPLEX)
        with torch.no_grad():
            errors.append((net(COMPLEX) - teacher).square().mean())
    assert errors[0] < 0.7 * errors[1]


def calibrated_on_both(network, bits):
    options = {"w_bits": bits, "a_bits": bits, "ingredients": {"image_percentiles": [0.0, 0.6]}}
    net = quantize(network, SIMPLE[:1], recipe="best", **options)
    calibrate(net, [torch.cat([SIMPLE, COMPLEX])])
    assert net.image_mapping(COMPLEX).min() == 1
    return net


def test_complex_images_have_wider_ranges(tiny):
    net = calibrated_on_both(tiny, bits=4)
    factors = [q.level_ranges[2].item() for q in net.activation_quantizers().values()]
    assert sum(factor > 1.1 for factor in factors) > len(factors) / 2, factors


def test_eight_bits_hold_a_complex_part_of_a_simple_image(tiny):
    net = calibrated_on_both(tiny, bits=8)
    image = torch.full((1, 3, 128, 128), 0.45)
    image[..., :16, :16] = COMPLEX[:1]
    assert net.image_mapping(image) < 1
    clipped = []
    for quantizer in net.activation_quantizers().values():
        quantizer.register_forward_pre_hook(
            lambda quantizer, args: clipped.append(float(quantizer.clipped_share(args[0])))
        )
    with torch.no_grad():
        net(image)
    assert max(clipped) < 1e-3


def test_no_image_gives_up_bits_where_all_layers_have_eight(tiny):
    images = torch.cat([SIMPLE, COMPLEX])
    net = calibrate(quantize(tiny, images[:1], recipe="best", w_bits=8, a_bits=8), [images])
    with torch.no_grad():
        assert (net(images, details=True).bits == 8).all()


def test_representative_images_span_what_there_is():
    chosen = representative([SIMPLE, COMPLEX], count=5)
    assert len(chosen) == 5
    assert sum(any(torch.equal(image, other) for other in COMPLEX) for image in chosen) == 2
    assert len(representative([SIMPLE], count=100)) == len(SIMPLE)


@pytest.mark.parametrize("network", [SharedByBranches, Recursive])
def test_a_layer_that_runs_several_times_is_fitted_to_all_of_its_inputs(network):
    torch.manual_seed(2)
    images = photographs(10, 48)
    net = quantize(network(), images[:1], recipe="fast", w_bits=8, a_bits=8)
    calibrate(net, [images[:8]])
    signal_to_noise = []

    def note(quantizer, args, output):
        signal = args[0].square().mean()
        noise = (output - args[0]).square().mean()
        signal_to_noise.append(float(10 * torch.log10(signal / noise)))

    for quantizer in net.activation_quantizers().values():
        quantizer.register_forward_hook(note)
    assert self_psnr(net, images[8:]) > 46
    assert min(signal_to_noise) > 25


class _QuietUnlessBright(nn.Module):
    """A branch that is zero on all images but bright ones."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = conv(3, 8), conv(8, 8), conv(8, 3)

    def forward(self, image):
        bright = F.relu(image.amax((1, 2, 3), keepdim=True) - 0.9).expand(-1, 8, 1, 1)
        return self.last(self.first(image) * (1 + self.gate(bright)))


def test_an_input_that_is_zero_on_all_but_complex_images_keeps_its_range():
    options = {"a_bits": 8, "recipe": "fast", "fully_quantized": True}
    net = quantize(_QuietUnlessBright(), COMPLEX[:1], **options)
    calibrate(net, [torch.cat([SIMPLE, COMPLEX])])
    assert net.activation_quantizers()["gate"].upper > 0


class _ChannelAttention(nn.Module):
    """Features whose channels are scaled by what they are on average."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = conv(3, 8), nn.Conv2d(8, 8, 1), conv(8, 3)

    def forward(self, image):
        features = self.first(image)
        gates = torch.sigmoid(self.gate(features.mean((2, 3), keepdim=True)))
        return self.last(features * gates)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_eight_bit_ranges_of_pooled_values_are_twice_what_was_seen(engine):
    torch.manual_seed(0)
    options = {"w_bits": 8, "a_bits": 8, "recipe": "fast", "fully_quantized": True}
    net = quantize(_ChannelAttention(), COMPLEX[:1], engine=engine, **options)
    calibrate(net, [SIMPLE, COMPLEX])
    inputs = []
    gate = net.activation_quantizers()["gate"]
    gate.register_forward_pre_hook(lambda quantizer, args: inputs.append(args[0]))
    with torch.no_grad(), net.full_precision():
        for images in (SIMPLE, COMPLEX):
            net(images)
    seen = torch.cat(inputs)
    assert gate.clipped_share(1.9 * seen) == 0
    assert gate.clipped_share(2.2 * seen) > 0


class _RarelyLarge(nn.Module):
    """A body whose input has many small values and few large ones."""

    def __init__(self):
        super().__init__()
        self.first, self.body, self.last = conv(3, 8), conv(8, 8), conv(8, 3)

    def forward(self, image):
        return self.last(self.body(self.first(image) ** 5))


def test_two_bits_clip_rare_values_more_than_three():
    torch.manual_seed(0)
    network = _RarelyLarge()
    shares = {}
    for bits in (2, 3):
        net = quantize(network, COMPLEX[:1], recipe="fast", a_bits=bits, w_bits=8)
        net = calibrate(net, [torch.cat([SIMPLE, COMPLEX])])
        quantizer = net.activation_quantizers()["body"]
        seen = []
        quantizer.register_forward_pre_hook(lambda quantizer, args, seen=seen: seen.append(args[0]))
        with torch.no_grad(), net.full_precision():
            net(COMPLEX)
        largest = (seen[0] / quantizer.channel_scale).abs().amax()
        widest = torch.maximum(-quantizer.lower, quantizer.upper)
        shares[bits] = (widest / largest).item()
    assert shares[2] < 0.3 < shares[3]
