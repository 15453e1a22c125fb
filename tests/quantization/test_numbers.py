"""Numbers at the edge give a result or a clear error.

Constant images, dead layers, NaN, single pixels, two bits.
"""

import pytest
import torch
from conftest import TINY_EDSR

from adabm_basicsr import AdaBMError, calibrate, finetune, load_network, quantize, save_packed
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.recipes import OBSERVERS

RECIPES = ("paper", "best", "static")
IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
NAN, INF = float("nan"), float("inf")


def network(change=lambda layers: None, **options):
    """A tiny quantized EDSR whose quantized layers were changed."""
    torch.manual_seed(0)
    net = AdaBMNetwork(network=dict(TINY_EDSR), **{"fully_quantized": True, **options})
    change(list(net.layers().values()))
    return net


def run(net, images):
    """Calibrate, fine-tune and pack, and check that all of it stays finite."""
    calibrate(net, [images])
    if net.config.finetuning.phases:
        finetune(net, [images] * 6, iterations_per_epoch=2)
    assert all(
        value.isfinite().all() for value in net.state_dict().values() if value.is_floating_point()
    )
    with torch.no_grad():
        output = net(images)
    assert output.shape == (len(images), 3, *(2 * size for size in images.shape[2:]))
    assert output.isfinite().all()
    return output


def full_precision(net, images):
    with torch.no_grad(), net.full_precision():
        return net(images)


def no_weights(layers):
    for layer in layers:
        layer.weight.data.zero_()
        layer.bias.data.zero_()


def dead_channels(layers):
    for layer in layers:
        layer.weight.data[0] = 0
        layer.bias.data[0] = 0


def dead_layer(layers):
    """The second layer's input is zero everywhere: behind a ReLU that lets nothing through."""
    layers[1].weight.data.zero_()
    layers[1].bias.data.fill_(-1)


def equal_weights(layers):
    for layer in layers:
        layer.weight.data.fill_(0.1)


def tiny_weights(layers):
    for layer in layers:
        layer.weight.data.mul_(1e-20)


CHANGES = [no_weights, dead_channels, dead_layer, equal_weights, tiny_weights]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("change", CHANGES)
def test_degenerate_weights(recipe, change, tmp_path):
    net = network(change, recipe=recipe)
    output = run(net, IMAGES)
    if change is no_weights:
        torch.testing.assert_close(output, full_precision(net, IMAGES), atol=1e-3, rtol=0)
    save_packed(net, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "net.safetensors")(IMAGES), output)


KINDS_OF_IMAGES = {
    "constant": torch.full((4, 3, 16, 16), 0.5),
    "black": torch.zeros(4, 3, 16, 16),
    "one image": IMAGES[:1],
    "one pixel": IMAGES[:2, :, :1, :1],
    "one row": IMAGES[:1, :, :1],
    "one pixel, one image": IMAGES[:1, :, :1, :1],
    "one white pixel in black": torch.zeros(1, 3, 16, 16).index_fill(3, torch.tensor(0), 1.0),
    "a tall strip": torch.rand(1, 3, 200, 2, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", KINDS_OF_IMAGES)
def test_degenerate_images(recipe, kind):
    images = KINDS_OF_IMAGES[kind]
    net = network(recipe=recipe)
    run(net, images)
    with torch.no_grad():
        assert net(IMAGES).isfinite().all()  # and images of another kind still go through


def test_constant_images_have_equal_thresholds_and_no_image_factor():
    net = calibrate(network(recipe="paper"), [KINDS_OF_IMAGES["black"]])
    assert net.image_mapping.lower.item() == net.image_mapping.upper.item() == 0
    assert net.image_mapping(KINDS_OF_IMAGES["black"]).tolist() == [0, 0, 0, 0]
    assert net.image_mapping(IMAGES).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_observers_of_a_layer_that_sees_one_value(observer):
    net = calibrate(network(dead_layer, recipe="static", observer=observer), [IMAGES])
    with torch.no_grad():
        assert net(IMAGES).isfinite().all()


@pytest.mark.parametrize(
    ("recipe", "a_bits"), [("paper", 3), ("best", 2), ("fast", 2), ("static", 2)]
)
def test_two_bits_everywhere(recipe, a_bits, tmp_path):
    net = network(recipe=recipe, w_bits=2, a_bits=a_bits)
    output = run(net, IMAGES)
    save_packed(net, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "net.safetensors")(IMAGES), output)
    for name, layer in net.layers().items():
        if not net.plan.layers[name].fixed and net.config.arithmetic.integer is False:
            assert len(torch.unique(layer.weight_quantizer(layer.weight))) <= 4


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("recipe", RECIPES)
def test_calibration_refuses_what_is_not_finite(recipe, value):
    images = IMAGES.clone()
    images[2, 1, 3, 3] = value
    with pytest.raises(AdaBMError, match="a calibration image holds NaN or infinite values"):
        calibrate(network(recipe=recipe), [images])


@pytest.mark.parametrize("recipe", RECIPES)
def test_networks_whose_output_is_not_finite_are_refused(recipe):
    def overflow(layers):
        layers[-1].weight.data.fill_(1e38)

    def nan(layers):
        layers[3].bias.data[1] = NAN

    for change in (overflow, nan):
        with pytest.raises(
            AdaBMError, match="the full-precision network's output holds NaN or infinite values"
        ):
            calibrate(network(change, recipe=recipe), [IMAGES])


@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_a_loss_that_is_not_finite_ends_fine_tuning(recipe):
    net = calibrate(network(recipe=recipe), [IMAGES])
    with pytest.raises(AdaBMError, match="fine-tuning diverged: the loss of iteration 1 is nan"):
        finetune(net, [IMAGES * NAN])


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_pixel_that_is_not_finite_stays_where_it_is(recipe, value):
    net = calibrate(network(recipe=recipe), [IMAGES])
    images = IMAGES.clone()
    images[1, 0, 0, 0] = value
    with torch.no_grad():
        clean, output = net(IMAGES), net(images)
        bits = net.bits_for(images)
    assert torch.equal(output[[0, 2, 3]], clean[[0, 2, 3]])  # the other images of the batch
    assert output[1, :, 30:, 30:].isfinite().all()  # and what lies further than the network sees
    assert bits.isfinite().all()


def test_huge_pixels_give_a_finite_image():
    net = calibrate(network(recipe="static"), [IMAGES])
    with torch.no_grad():
        assert net(IMAGES * 1e30).isfinite().all()  # clipped to the range that was calibrated


def test_calibration_without_images():
    for none in ([], iter(())):
        with pytest.raises(
            AdaBMError, match="calibration needs at least one batch of images, and got none"
        ):
            calibrate(network(), none)


def test_networks_in_another_precision_are_refused(tiny):
    with pytest.raises(
        AdaBMError, match=r"the network works on torch\.float64; quantize it in torch\.float32"
    ):
        quantize(tiny.double(), IMAGES[:1].double())


@pytest.mark.slow
def test_an_image_of_8k():
    """7680x4320 pixels through a network of two features; a corner is what it is alone."""
    torch.manual_seed(0)
    small = {**TINY_EDSR, "num_feat": 2, "num_block": 1, "upscale": 1}
    net = calibrate(AdaBMNetwork(network=small, recipe="static", fully_quantized=True), [IMAGES])
    image = torch.rand(1, 3, 4320, 7680, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        output = net(image)
        corner = net(image[..., -64:, -64:])
    assert output.shape == image.shape
    torch.testing.assert_close(output[..., -40:, -40:], corner[..., -40:, -40:])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cast", [True, False], ids=["autocast", "cast"])
def test_low_precision_computes_the_same_up_to_its_own_rounding(kind, cast):
    net = network(w_bits=8, a_bits=8)
    calibrate(net, [IMAGES])
    with torch.no_grad():
        expected = net(IMAGES)
        if cast:
            with torch.autocast("cpu", kind):
                output = net(IMAGES)
        else:
            output = net.to(kind)(IMAGES.to(kind))
    assert cast or output.dtype is kind
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=8 * torch.finfo(kind).eps)
