"""The Python API: quantize, calibrate, fine-tune, save and load a plain network."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from adabm_basicsr import (
    AdaBMError,
    FinetuneSettings,
    calibrate,
    finetune,
    load_checkpoint,
    quantize,
    save_checkpoint,
    summarize,
)
from adabm_basicsr.quantization.layers import QuantizedLayer, register_layer
from adabm_basicsr.quantization.measures.cost import CostMeter, size_bytes

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


def test_uncalibrated_network_refuses_to_infer(tiny):
    with pytest.raises(AdaBMError, match="the quantized network has no ranges yet"):
        quantize(tiny, IMAGES[:1])(IMAGES)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_more_bits_err_less(tiny, bits):
    def error(bits):
        with torch.no_grad():
            return (calibrated(tiny, w_bits=bits, a_bits=bits)(IMAGES) - tiny(IMAGES)).abs().mean()

    assert error(bits) < error(bits - 1)


def test_32_bits_leave_layers_alone(tiny):
    net = quantize(tiny, IMAGES[:1], layers={"body.0.*": {"w_bits": 32, "a_bits": 32}})
    assert net.plan.skipped["body.0.conv1"] == "32 bits"
    assert list(net.layers()) == [
        "body.1.conv1",
        "body.1.conv2",
    ]
    with pytest.raises(AdaBMError, match="no layer is left to quantize"):
        quantize(tiny, IMAGES[:1], w_bits=32, a_bits=32)
    weights_only = calibrated(tiny, w_bits=8, a_bits=32, recipe="static")
    with torch.no_grad():
        torch.testing.assert_close(weights_only(IMAGES), tiny(IMAGES), atol=0.02, rtol=0)


def test_quantizers_live_where_the_network_does(tiny):
    net = quantize(tiny.to("meta"), IMAGES[:1].to("meta"))
    assert {value.device.type for value in net.state_dict().values()} == {"meta"}


def test_half_networks_are_refused(tiny):
    with pytest.raises(AdaBMError, match=r"works on torch.float16; quantize it in torch.float32"):
        quantize(tiny.half(), IMAGES[:1].half())


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
    assert all(high <= wide for (_, high), wide in zip(ranges, widest, strict=True))


def test_exclude_and_layer_bits(tiny):
    net = calibrated(
        tiny,
        recipe="paper",
        exclude=("body.0",),
        layers={"body.1.conv2": {"w_bits": 8, "a_bits": 6}},
        fully_quantized=True,
    )
    assert "body.0.conv1" not in net.layers()
    assert net.plan.skipped["body.0.conv2"] == "excluded"
    layer = net.layers()["body.1.conv2"]
    assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == (8, 6)
    assert net.layers()["body.1.conv1"].weight_quantizer.bits == 4
    assert net.layers()["conv_first"].input_quantizer.fixed


def test_bits_of_single_layers_are_not_allocated_anew(tiny):
    net = calibrated(
        tiny,
        recipe="best",
        layers={"body.1.conv2": {"w_bits": 8, "a_bits": 6}, "body.0.conv1": {"w_bits": 4}},
    )
    layers = net.layers()
    assert layers["body.1.conv2"].weight_quantizer.bits == 8
    assert layers["body.0.conv1"].weight_quantizer.bits == 4
    assert layers["body.1.conv2"].input_quantizer.bits_used().item() == 6


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


def test_checkpoint_round_trip(tiny, tmp_path):
    net = finetune(calibrated(tiny, fully_quantized=True), [IMAGES] * 6, iterations_per_epoch=2)
    save_checkpoint(net, tmp_path / "net.pth")
    again = load_checkpoint(quantize(tiny, IMAGES[:1], fully_quantized=True), tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.equal(net(IMAGES), again(IMAGES))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"params": state},
        lambda state: {"params_ema": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"params": {f"module.{key}": value.half() for key, value in state.items()}},
    ],
)
def test_plain_checkpoints_in_all_wrappings(tiny, tmp_path, wrap):
    state = {key: value.half().float() for key, value in tiny.state_dict().items()}
    torch.save(wrap(state), tmp_path / "plain.pth")
    net = load_checkpoint(quantize(tiny, IMAGES[:1]), tmp_path / "plain.pth")
    assert torch.equal(net.network.conv_last.weight, state["conv_last.weight"])
    assert net.stage == 0


def test_plain_checkpoint_keys_are_recognisable(tiny):
    net = quantize(tiny, IMAGES[:1])
    base = {key for key in net.state_dict() if "quantizer" not in key}
    assert base >= {f"network.{key}" for key in tiny.state_dict()}


def test_writing_fails_without_harm(tiny, tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    path.write_bytes(b"the previous one")
    net = quantize(tiny, IMAGES[:1])
    monkeypatch.setattr(
        Path,
        "write_bytes",
        lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(AdaBMError, match=r"cannot write .*No space left on device"):
        save_checkpoint(net, path)
    assert path.read_bytes() == b"the previous one"
    assert list(tmp_path.iterdir()) == [path]


def test_cost_of_full_precision_and_quantized(tiny):
    with CostMeter(tiny) as meter:
        tiny(IMAGES[:1])
        whole = meter.read()
        tiny(IMAGES)
        assert meter.read(len(IMAGES)) == whole
    assert whole.fab == 32
    assert whole.bitops / 32 / 32 == sum(quantize(tiny, IMAGES[:1]).structure.macs.values())
    assert not any(module._forward_hooks for module in tiny.modules())


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


def test_summary_names_every_layer_and_every_reason(tiny):
    net = calibrated(tiny)
    summary = summarize(net, IMAGES)
    text = str(summary)
    assert [row.name for row in summary.layers] == list(net.layers())
    assert all(name in text for name in net.layers())
    assert "upsample.0, conv_last: tail (fully_quantized is off), " in text
    assert "conv_first: head (fully_quantized is off)" in text
    assert 0 < summary.coverage.macs < 1
    assert 3 <= summary.fab <= 5
    body = [row for row in summary.layers if not net.plan.layers[row.name].fixed]
    expected = sum(row.a_bits * row.macs_share for row in body) / sum(
        row.macs_share for row in body
    )
    assert summary.bits_by_macs == pytest.approx(expected)
    assert f"weighted by MACs {expected:.2f}" in text
    assert all(row.sqnr_db > 0 for row in summary.layers)


def test_calibration_refuses_nan_and_nothing(tiny):
    net = quantize(tiny, IMAGES[:1])
    with pytest.raises(AdaBMError, match="a calibration image holds NaN"):
        calibrate(net, [IMAGES * float("nan")])
    with pytest.raises(AdaBMError, match="at least one batch"):
        calibrate(net, [])


def test_constant_images_calibrate_and_infer(tiny):
    flat = torch.full((4, 3, 24, 24), 0.3)
    net = calibrate(quantize(tiny, IMAGES[:1], fully_quantized=True), [flat])
    finetune(net, [flat] * 3, iterations_per_epoch=1)
    assert torch.isfinite(net(flat)).all()
    assert torch.isfinite(net(IMAGES)).all()


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
    net = calibrated(network)
    assert isinstance(net.network[1], QuantizedScaled)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False),
        *[
            nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)
            for mode in ("reflect", "replicate", "circular")
        ],
        nn.ConvTranspose2d(8, 8, 3, padding=1),
        nn.Sequential(nn.Conv2d(8, 8, 2, stride=2), nn.ConvTranspose2d(8, 8, 2, stride=2)),
    ],
)
def test_every_kind_of_convolution(layer):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), layer, nn.Conv2d(8, 3, 3, padding=1))
    net = calibrated(network, w_bits=8, a_bits=8, recipe="static", fully_quantized=True)
    with torch.no_grad():
        error, signal = (
            (net(IMAGES) - network(IMAGES)).square().mean(),
            network(IMAGES).square().mean(),
        )
    assert error < 1e-3 * signal
    assert len(net.layers()) == sum(
        isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in network.modules()
    )


def test_shared_layer_becomes_one_quantized_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(8, 8, 3, padding=1)
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(x))

    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Twice(), Twice(), nn.Conv2d(8, 3, 3, padding=1)
    )
    net = calibrated(network)
    assert net.network[1].a is net.network[1].b
    finetune(net, [IMAGES] * 3, iterations_per_epoch=1)


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
    net = calibrated(tiny, fully_quantized=True)
    images = torch.rand(3, 3, 16, 16) * torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(net.bits_for(images), net(images, details=True).bits)
    assert net.bits_for(images).unique().numel() > 1


class Wrapped(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.module = copy.deepcopy(network)

    def forward(self, x):
        return self.module(x)


class WithLast(Wrapped):
    """Has a layer of its own of the name that one of the inner network's has."""

    def __init__(self, network):
        super().__init__(network)
        self.conv_last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv_last(self.module(x))


@pytest.mark.parametrize("kind", [Wrapped, WithLast])
def test_network_with_a_child_called_module(tiny, tmp_path, kind):
    source, plain, parallel = kind(tiny), kind(tiny), nn.DataParallel(kind(tiny))
    parallel.module.load_state_dict(source.state_dict())
    net = quantize(kind(tiny), IMAGES[:1])
    for index, state in enumerate((source.state_dict(), parallel.state_dict())):
        torch.save({"params": state}, tmp_path / f"{index}.pth")
        for loaded in (
            load_checkpoint(net, tmp_path / f"{index}.pth"),
            load_checkpoint(plain, tmp_path / f"{index}.pth"),
        ):
            with torch.no_grad(), net.full_precision():
                assert torch.equal(loaded(IMAGES), source(IMAGES))
