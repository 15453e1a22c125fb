"""The Python API: quantize, calibrate, fine-tune, save and load a plain network."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from adabm_basicsr import (
    AdaBMError,
    FinetuneSettings,
    calibrate,
    finetune,
    quantize,
)

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def calibrated(network, **options):
    return calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])


def test_quantize_leaves_the_network_alone(tiny):
    before = tiny(IMAGES)
    net = calibrated(tiny, w_bits=2, a_bits=3)
    torch.testing.assert_close(tiny(IMAGES), before, rtol=0, atol=0)
    with net.full_precision(), torch.no_grad():
        torch.testing.assert_close(net(IMAGES), before, rtol=0, atol=0)
    with torch.no_grad():
        assert (net(IMAGES) - before).abs().max() > 0


@pytest.mark.parametrize("recipe", ["static", "paper", "best"])
def test_a_network_that_changes_its_input_in_place_sees_the_same_images_again(tiny, recipe):
    class Centring(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(tiny)

        def forward(self, x):
            x -= 0.4
            return self.inner(x) + 0.4

    images = IMAGES.clone()
    net = calibrate(
        quantize(Centring(), IMAGES[:1].clone(), w_bits=8, a_bits=8, recipe=recipe), [images]
    )
    if recipe != "static":
        finetune(net, [images] * 3)
    assert torch.equal(images, IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(net(images), tiny(IMAGES - 0.4) + 0.4, atol=0.05, rtol=0)


def test_a_quantized_network_is_not_quantized_again(tiny):
    net = quantize(tiny, IMAGES[:1])
    with pytest.raises(AdaBMError, match="QuantizedNetwork is quantized already: quantize the"):
        quantize(net, IMAGES[:1])
    with pytest.raises(AdaBMError, match="EDSR is quantized already: quantize the network that it"):
        quantize(net.network, IMAGES[:1])


def test_uncalibrated_network_rejects_images(tiny):
    with pytest.raises(AdaBMError, match="the quantized network has no ranges yet"):
        quantize(tiny, IMAGES[:1])(IMAGES)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_more_bits_err_less(tiny, bits):
    def error(bits):
        with torch.no_grad():
            return (calibrated(tiny, w_bits=bits, a_bits=bits)(IMAGES) - tiny(IMAGES)).abs().mean()

    assert error(bits) < error(bits - 1)


def test_quantizers_live_where_the_network_does(tiny):
    net = quantize(tiny.to("meta"), IMAGES[:1].to("meta"))
    assert {value.device.type for value in net.state_dict().values()} == {"meta"}


def test_network_that_takes_no_image_is_named():
    with pytest.raises(
        AdaBMError, match=r"Linear cannot be run on .* 3 channels .*\(17x19: .*give size_multiple"
    ):
        quantize(nn.Linear(7, 7), IMAGES[:1])


def test_network_without_blocks_can_be_finetuned():
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    net = finetune(calibrated(network, fully_quantized=True), [IMAGES] * 3, iterations_per_epoch=1)
    assert torch.isfinite(net(IMAGES)).all()


def test_batch_equals_single_images(tiny):
    net = calibrated(
        tiny, fully_quantized=True
    ).double()  # in float32 a batch may round a value the other way
    images = IMAGES.double()
    with torch.no_grad():
        together = net(images)
        alone = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_static_recipe_uses_its_bits_everywhere(tiny):
    net = calibrated(tiny, recipe="static", a_bits=5)
    details = net(IMAGES, details=True)
    assert details.bits.tolist() == [5.0] * 4
    with pytest.raises(AdaBMError, match="recipe 'static' has nothing to fine-tune"):
        finetune(net, [IMAGES])


@pytest.mark.parametrize("observer", ["minmax", "percentile", "omse"])
def test_static_observers(tiny, observer):
    net = calibrated(tiny, recipe="static", a_bits=3, observer=observer)
    quantizers = [layer.input_quantizer for layer in net.layers().values()]
    ranges = [(q.lower.item(), q.upper.item()) for q in quantizers]
    minmax = calibrated(tiny, recipe="static", a_bits=3)
    widest = [layer.input_quantizer.upper.item() for layer in minmax.layers().values()]
    assert all(low < high for low, high in ranges)
    assert all(high <= wide for (_, high), wide in zip(ranges, widest, strict=False))


def test_finetuning_trains_what_each_phase_names_and_reduces_the_loss(tiny):
    net = calibrated(tiny, fully_quantized=True)
    weights = {
        name: p.clone() for name, p in net.network.named_parameters() if "quantizer" not in name
    }

    def loss():
        with torch.no_grad(), net.full_precision():
            teacher = net(IMAGES)
        with torch.no_grad():
            return (net(IMAGES) - teacher).abs().mean().item()

    before = loss()
    finetune(net, [IMAGES] * 30, FinetuneSettings(), iterations_per_epoch=5)
    assert loss() < before
    assert all(
        torch.equal(weights[name], dict(net.network.named_parameters())[name]) for name in weights
    )


def test_base_network_stays_in_evaluation_mode(tiny):
    net = calibrated(tiny)
    net.train()
    assert not any(module.training for module in net.network.modules())


def test_copy_of_a_network_that_has_run(tiny):
    net = calibrated(tiny)
    net(IMAGES, details=True)
    torch.testing.assert_close(copy.deepcopy(net)(IMAGES), net(IMAGES))


def test_works_without_basicsr():
    code = (
        "import sys; sys.modules['basicsr'] = None\n"
        "import torch; from torch import nn; import adabm_basicsr as a\n"
        "net = nn.Sequential(*[nn.Conv2d(3, 3, 3, 1, 1) for _ in range(4)])\n"
        "x = torch.rand(2, 3, 16, 16)\n"
        "q = a.calibrate(a.quantize(net, x[:1]), [x])\n"
        "q = a.finetune(q, [x] * 3, iterations_per_epoch=1)\n"
        "print(tuple(q(x).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 3, 16, 16)"


def test_bits_are_known_without_running(tiny):
    net = calibrated(tiny, fully_quantized=True, ingredients={"image_bits": [-1, 1]})
    images = torch.rand(3, 3, 16, 16) * torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(net.bits_for(images), net(images, details=True).bits)
    assert net.bits_for(images).unique().numel() > 1
