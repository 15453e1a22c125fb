"""Quantized layers: they compute what the float layer does, on the grid that integers allow."""

import copy

import pytest
import torch
import torch.nn.functional as F
from layer_types import LAYERS, X, network_of
from torch import nn

from adabm_basicsr import calibrate, finetune, quantize
from adabm_basicsr.quantization.layers import (
    QuantizedLayer,
    QuantizedProduct,
    quantized_type,
    register_layer,
)
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def quantized(name, bits, recipe="best", seed=0):
    torch.manual_seed(seed)
    network = network_of(LAYERS[name]())
    net = quantize(network, X[:1], recipe=recipe, w_bits=bits, a_bits=bits)
    return network, calibrate(net, [X])


@pytest.mark.parametrize("recipe", ["best", "static"])
@pytest.mark.parametrize("name", LAYERS)
def test_eight_bits_come_close(name, recipe):
    network, net = quantized(name, 8, recipe)
    with torch.no_grad():
        expected = network(X)
        assert (net(X) - expected).square().mean() < 1e-3 * expected.square().mean()


@pytest.mark.parametrize("name", LAYERS)
def test_inference_adds_up_whole_numbers(name):
    """So that its sums are exact; in training a layer computes the same on rounded values."""
    net = quantized(name, 4)[1]
    layer = next(iter(net.layers().values()))
    taken = []
    layer.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    net(X)
    with torch.no_grad():
        exact = layer(taken[0])
        double = copy.deepcopy(layer).double()(taken[0].double())
    trained = layer(taken[0])
    torch.testing.assert_close(exact, trained, rtol=1e-4, atol=1e-5)
    bias = (
        torch.zeros(())
        if layer.bias is None
        else layer.weight_quantizer.bias(layer.bias).view(-1, 1, 1)
    )
    # What remains are the roundings of the scale, of its product with the sum, and of the sum with
    # the bias.
    assert (
        (exact - double).abs()
        <= 4 * torch.finfo(exact.dtype).eps * ((double - bias).abs() + double.abs())
    ).all()


@pytest.mark.parametrize("name", [name for name in LAYERS if "transposed" not in name])
def test_columns_times_weights_are_the_output(name):
    layer = LAYERS[name]()
    quantized_layer = quantized_type(layer).from_float(layer, nn.Identity(), nn.Identity())
    columns = quantized_layer.columns(X, X.numel())
    rows = layer.weight.reshape(len(columns), -1, columns.shape[1])
    out = layer(X) - (0 if layer.bias is None else layer.bias.view(1, -1, 1, 1))
    torch.testing.assert_close(
        (rows @ columns).flatten(0, 1), out.transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", LAYERS)
def test_channel_scales_pass_from_input_to_weight(name):
    layer = LAYERS[name]()
    quantized_layer = quantized_type(layer).from_float(
        copy.deepcopy(layer), nn.Identity(), nn.Identity()
    )
    of_input, of_weight = quantized_layer.channel_views(torch.rand(8) + 0.5)
    with torch.no_grad():
        expected = layer(X)
        quantized_layer.weight.mul_(of_weight)
        torch.testing.assert_close(quantized_layer(X / of_input), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_integers_times_one_scale_per_output_channel(name, bits):
    _, net = quantized(name, bits)
    layer = net.layers()["1"]
    quantizer = layer.weight_quantizer
    scale = (2 * quantizer.upper / (2**bits - 1)).view(
        [-1 if axis == quantizer.axis else 1 for axis in range(4)]
    )
    integers = quantizer(layer.weight) * quantizer.channel_scale / scale
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
    assert integers.round().min() >= -(2 ** (bits - 1))
    assert integers.round().max() <= 2 ** (bits - 1) - 1


def test_linear_layers_of_tokens():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.Linear(168, 24), nn.ReLU(), nn.Linear(24, 168)
    )
    network.append(nn.Unflatten(2, (12, 14))).append(nn.Conv2d(8, 8, 1))
    net = calibrate(
        quantize(network, X[:1], recipe="best", w_bits=8, a_bits=8, size_multiple=1), [X]
    )
    assert list(net.layers()) == ["2", "4"]
    with torch.no_grad():
        assert (net(X) - network(X)).square().mean() < 1e-3 * network(X).square().mean()


def test_subclass_that_only_sets_options_is_quantized_and_one_that_computes_otherwise_is_not():
    class Conv3x3(nn.Conv2d):
        def __init__(self, channels):
            super().__init__(channels, channels, 3, padding=1)

    class Doubled(Conv3x3):
        def forward(self, x):
            return F.conv2d(x, 2 * self.weight, self.bias, padding=1)

    network = nn.Sequential(nn.Conv2d(8, 8, 1), Conv3x3(8), Doubled(8), nn.Conv2d(8, 8, 1))
    net = calibrate(quantize(network, X[:1], w_bits=8, a_bits=8), [X])
    assert list(net.layers()) == ["1"]
    assert isinstance(net.layers()["1"], Conv3x3)
    assert "Doubled" in net.plan.skipped["2"]


class Attention(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.qkv, self.out = nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x).flatten(2).chunk(3, 1))
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "einsum":
            y = torch.einsum(
                "bij,bjc->bic", torch.einsum("bic,bjc->bij", q, k).div(8**0.5).softmax(-1), v
            )
        elif self.how == "bmm":
            y = torch.bmm(torch.bmm(q, k.mT).div(8**0.5).softmax(-1), v)
        else:
            y = (q @ k.mT / 8**0.5).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


@pytest.mark.parametrize("how", ["matmul", "bmm", "einsum", "sdpa"])
def test_attention_products_are_quantized_however_they_are_written(how):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 1), Attention(how), Attention(how), nn.Conv2d(8, 8, 1))
    net = quantize(network, X[:1], recipe="best", w_bits=8, a_bits=8, attention_products=True)
    products = {
        name: layer for name, layer in net.layers().items() if isinstance(layer, QuantizedProduct)
    }
    assert list(products) == [f"{i}.quantized_products.{k}" for i in (1, 2) for k in (0, 1)]
    assert net.structure.macs["1.quantized_products.0"] == 168 * 168 * 8
    calibrate(net, [X])
    with torch.no_grad():
        expected, output = network(X), net(X)
        assert 0 < (output - expected).square().mean() < 1e-3 * expected.square().mean()
        with net.full_precision():
            torch.testing.assert_close(net(X), expected, rtol=1e-4, atol=1e-5)
        net.double()  # in float32 a batch may round a value the other way
        images = X.double()
        alone = torch.cat([net(image[None]) for image in images])
        details = net(images, details=True)
    torch.testing.assert_close(details.output, alone, rtol=1e-5, atol=1e-5)
    bits = details.bits
    assert all(
        layer.left.last_bits.min() >= 2 and layer.right.last_bits.max() <= 8
        for layer in products.values()
    )
    assert bits.shape == (2,)
    assert (bits <= 8).all()


def test_some_products_can_be_excluded():
    network = nn.Sequential(
        nn.Conv2d(8, 8, 1), Attention("matmul"), Attention("matmul"), nn.Conv2d(8, 8, 1)
    )
    net = quantize(
        network, X[:1], recipe="best", attention_products=True, exclude=["1.quantized_products.0"]
    )
    calibrate(net, [X])
    assert [name for name in net.layers() if "products.0" in name] == ["2.quantized_products.0"]
    assert torch.isfinite(net(X)).all()


def gradients_of_range(layer, x):
    """Through one product, and through every weight."""
    for linear in (True, False):
        layer.linear = linear
        torch.manual_seed(1)
        out = layer(x)
        yield torch.autograd.grad(out, layer.weight_quantizer.upper, torch.randn_like(out))[0]


# A range per output channel, and one per tensor.
@pytest.mark.parametrize("recipe", ["best", "paper"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_of_a_weight_range_equals_that_through_every_weight(name, recipe):
    _, net = quantized(name, 4, recipe)
    cheap, plain = gradients_of_range(net.layers()["1"], X)
    torch.testing.assert_close(cheap, plain, rtol=1e-4, atol=1e-4)
    assert cheap.abs().max() > 0


@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8), (2, 3, 4, 8)])
def test_gradient_of_a_linear_weight_range(shape):
    torch.manual_seed(0)
    layer = nn.Linear(8, 5)
    quantizer = WeightQuantizer(4, channels=5, integer=True)
    linear = quantized_type(layer).from_float(layer.requires_grad_(False), nn.Identity(), quantizer)
    cheap, plain = gradients_of_range(linear, torch.randn(shape, requires_grad=True))
    torch.testing.assert_close(cheap, plain, rtol=1e-4, atol=1e-4)


def test_an_image_without_a_batch():
    layer, quantizer = nn.Conv2d(8, 5, 3), WeightQuantizer(4, channels=5, integer=True)
    conv = quantized_type(layer).from_float(layer.requires_grad_(False), nn.Identity(), quantizer)
    torch.testing.assert_close(*gradients_of_range(conv, X[0]), rtol=1e-4, atol=1e-4)


class ByKeyword(nn.Module):
    """Names its layers' input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x):
        out = self.second(input=self.first(input=x).permute(0, 2, 3, 1))
        return x + out.permute(0, 3, 1, 2)


class InPlace(nn.Module):
    """Writes over the input of its layers once these have run."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = x.clone()
        x[:, :4] = self.first(x[:, :4])
        out = self.second(x)
        x.relu_()
        return out + x


@pytest.mark.parametrize("recipe", ["best", "paper"])
@pytest.mark.parametrize("kind", [ByKeyword, InPlace])
def test_ways_to_call_a_layer(kind, recipe):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sequential(kind(), kind()), nn.Conv2d(8, 12, 3), nn.PixelShuffle(2)
    )
    images = torch.rand(4, 3, 16, 16)
    net = quantize(network, images[:1], recipe=recipe, w_bits=8, a_bits=8)
    assert len(net.plan.layers) == 4
    finetune(calibrate(net, [images]), [images] * 3, iterations_per_epoch=1)
    with torch.no_grad():
        torch.testing.assert_close(net(images), network(images), rtol=0, atol=0.02)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_over_frames(groups):
    """Columns, scales of channels and integers of ``nn.Conv3d``, as of other convolutions above."""
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 6, (3, 3, 2), (1, 2, 1), (1, 1, 0), (1, 1, 2), groups=groups)
    clip = torch.randn(2, 4, 5, 7, 8)
    quantized_layer = quantized_type(layer).from_float(
        copy.deepcopy(layer), nn.Identity(), WeightQuantizer(8, 6, integer=True)
    )
    with torch.no_grad():
        expected = layer(clip)
        columns = quantized_layer.columns(clip, clip.numel())
        rows = layer.weight.reshape(groups, -1, columns.shape[1])
        out = (rows @ columns).flatten(0, 1) + layer.bias.view(-1, 1)
        torch.testing.assert_close(out, expected.transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)
        of_input, of_weight = quantized_layer.channel_views(torch.rand(4) + 0.5)
        quantized_layer.weight_quantizer.enabled = False
        quantized_layer.weight.mul_(of_weight)
        out = quantized_layer(clip / of_input)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_layers_that_change_the_size():
    layer = nn.Sequential(nn.Conv2d(8, 8, 2, stride=2), nn.ConvTranspose2d(8, 8, 2, stride=2))
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), layer, nn.Conv2d(8, 3, 3, padding=1))
    options = {"w_bits": 8, "a_bits": 8, "recipe": "static", "fully_quantized": True}
    net = calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])
    assert list(net.layers()) == ["0", "1.0", "1.1", "2"]
    with torch.no_grad():
        expected = network(IMAGES)
        error = (net(IMAGES) - expected).square().mean()
    assert error < 1e-3 * expected.square().mean()


def test_own_layer_type():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    @register_layer(Scaled)
    class QuantizedScaled(QuantizedLayer, Scaled):
        def compute(self, x, weight, bias):
            return 2 * self._conv_forward(x, weight, bias)

    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), Scaled(4, 4, 3, 1, 1), Scaled(4, 4, 3, 1, 1), nn.Conv2d(4, 3, 1)
    )
    net = calibrate(quantize(network, IMAGES[:1]), [IMAGES])
    assert isinstance(net.network[1], QuantizedScaled)
