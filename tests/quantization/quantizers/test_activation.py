"""The quantizer of activations: bits of layer and image, ranges of classes and channels."""

import pytest
import torch

from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize


def test_bits_used_add_layer_and_image_and_stay_in_range():
    quantizer = ActivationQuantizer(7, adaptive=True, bit_range=(2, 8))
    quantizer.layer_factor.data.fill_(0.9)
    quantizer.image_factor = torch.tensor([-1.0, 0.0, 1.0])
    assert quantizer.bits_used().tolist() == [7, 8, 8]
    assert quantizer.bits_of_layer().item() == 8


def test_bits_of_a_layer_pass_gradients_to_its_factor():
    quantizer = ActivationQuantizer(4, adaptive=True)
    quantizer.layer_factor.data.fill_(-0.7)
    bits = quantizer.bits_of_layer()
    assert bits.item() == 3
    bits.sum().backward()
    expected = 1 - torch.tanh(torch.tensor(-0.7)) ** 2
    torch.testing.assert_close(quantizer.layer_factor.grad, expected.view(1))


def test_each_sample_is_quantized_at_its_own_bits():
    quantizer = ActivationQuantizer(4, adaptive=True)
    quantizer.image_factor = torch.tensor([-1.0, 1.0])
    x = torch.rand(4, 3, 5, 5)  # two parts of each of two samples
    out = quantizer(x)
    for part, bits in enumerate((3, 3, 5, 5)):
        expected = fake_quantize(x[part], quantizer.lower, quantizer.upper, bits)
        torch.testing.assert_close(out[part], expected)


def test_each_class_of_images_has_its_own_range_and_bits():
    quantizer = ActivationQuantizer(4, adaptive=True, integer=True)
    quantizer.follow_image_classes()
    quantizer.image_bits = (-1, 0)
    quantizer.level_ranges.data.copy_(torch.tensor([1.0, 1.0, 3.0]))
    quantizer.image_factor = torch.tensor([-1.0, 0.0, 1.0])
    out = quantizer(torch.full((6, 2, 1), 1.8))  # two parts of each sample
    expected = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.8, 1.8])
    torch.testing.assert_close(out[:, 0, 0], expected, atol=0.005, rtol=0)
    assert quantizer.last_bits.tolist() == [3, 4, 4]
    out.sum().backward()
    gradient = quantizer.level_ranges.grad
    assert gradient[2].item() != 0
    assert gradient.isfinite().all()


def test_a_quantizer_that_is_switched_off_passes_everything_through():
    quantizer = ActivationQuantizer(4)
    quantizer.enabled = False
    x = torch.randn(2, 3)
    assert quantizer(x) is x


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_float32_holds_grid_points_and_the_edges_between_them(bits):
    quantizer = ActivationQuantizer(bits, integer=True)
    quantizer.equalise(torch.tensor([1.0, 0.376953125]).view(1, 2, 1, 1))
    quantizer.lower.data.fill_(-0.7712345)
    quantizer.upper.data.fill_(1.1)
    common_scale = quantizer.scale(torch.zeros(1)).item()
    scale = common_scale * quantizer.channel_scale[0, 1, 0, 0].item()
    edges = torch.arange(2**bits, dtype=torch.float64).sub(0.5) * scale
    assert torch.equal(edges.float().double(), edges)
    x = torch.linspace(-1, 2, 5000).view(1, 1, -1, 1).expand(1, 2, -1, 1)
    indices = quantizer(x)[0, 1].double() / scale
    assert torch.equal(indices, indices.round())
    assert len(indices.unique()) == 2**bits
