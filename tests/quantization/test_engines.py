"""Networks hold the integers that their engine has, and no others."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adabm_basicsr import AdaBMError, calibrate, load_checkpoint, quantize, save_checkpoint
from adabm_basicsr.quantization.engines import DEFAULT_ENGINE, ENGINES
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
OTHERS = [engine for engine in ENGINES if engine != DEFAULT_ENGINE]


def options(engine, **changes):
    w_bits = ENGINES[engine].max_w_bits if engine in ENGINES else 8
    chosen = {"engine": engine, "recipe": "fast", "fully_quantized": True}
    return {**chosen, "w_bits": w_bits, "a_bits": 8, **changes}


def quantized(tiny, engine, **changes):
    return calibrate(quantize(tiny, IMAGES[:1], **options(engine, **changes)), [IMAGES])


@pytest.mark.parametrize("engine", OTHERS)
def test_integers_are_those_of_the_engine(engine, tiny):
    traits = ENGINES[engine]
    net = quantized(tiny, engine)
    seen = []

    def note(quantizer, args, output):
        scale = quantizer.scale(output)
        assert quantizer.channel_scale is None
        integers = output / scale
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
        seen.append((integers.min().item(), integers.max().item()))

    for quantizer in net.activation_quantizers().values():
        quantizer.register_forward_hook(note)
    with torch.no_grad():
        net(IMAGES)
    lowest = min(low for low, _ in seen)
    highest = max(high for _, high in seen)
    if traits.zero_points:
        assert highest - lowest > 127
    else:
        assert lowest >= (-127 if traits.narrow else -128)
        assert highest <= 127
        # Layers behind an activation function use the half of the integers that they have.
        assert highest > 100
    for name, quantizer in net.weight_quantizers().items():
        weight = net.network.get_submodule(name).weight
        integers = quantizer.grid_indices(weight) + quantizer.lowest
        half = 2 ** (traits.max_w_bits - 1)
        assert integers.min() >= (1 - half if traits.narrow else -half)
        assert integers.max() <= half - 1


@given(
    st.booleans(),
    st.floats(0.01, 100),
    st.lists(st.integers(-260, 260), min_size=1, max_size=20),
)
def test_signed_integers_round_halves_away_from_zero(narrow, scale, halves):
    quantizer = ActivationQuantizer(8, integer=True)
    quantizer.signed = True
    quantizer.narrow = narrow
    quantizer.ties_away = True
    with torch.no_grad():
        quantizer.lower.fill_(-0.1 * scale)
        quantizer.upper.fill_(127 * scale)
        step = quantizer.scale(quantizer.lower)
        x = torch.tensor(halves) / 2 * step
        integers = quantizer(x) / step
    for found, half in zip(integers.tolist(), halves, strict=True):
        wanted = int(abs(half) / 2 + 0.5) * (1 if half > 0 else -1)
        assert found == min(max(wanted, -127 if narrow else -128), 127)


@pytest.mark.parametrize("engine", OTHERS)
def test_biases_are_whole_where_the_engine_has_such(engine, tiny):
    net = quantized(tiny, engine)
    for layer in net.layers().values():
        input_scale = layer.input_quantizer.scale(layer.input_quantizer.lower)
        units = layer.effective_bias() / (input_scale * layer.weight_quantizer.scale)
        is_whole = bool((units - units.round()).abs().max() < 1e-2)
        assert is_whole == ENGINES[engine].whole_biases


def test_biases_that_are_rounded_are_learned(tiny):
    net = quantized(tiny, "onnxruntime")
    correction = net.network.body[0].conv1.weight_quantizer.bias_correction.requires_grad_()
    with torch.enable_grad():
        net(IMAGES).mean().backward()
    assert correction.grad.abs().max() > 0


def test_engines_without_zero_points_take_eight_bits():
    # Fewer bits would need other ends than those of signed integers of 8 bits.
    for engine in ENGINES.values():
        assert engine.zero_points or engine.min_a_bits == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "ncn"}, "engine: unknown value 'ncn'; did you mean 'ncnn'"),
        (
            {"engine": "ncnn", "a_bits": 4},
            "a_bits: 4 with engine: ncnn, which takes activations of",
        ),
        (
            {"engine": "ncnn", "layers": {"body.*": {"a_bits": 6}}},
            r"layers: body.\*: a_bits: 6 with engine: ncnn",
        ),
        (
            {"engine": "portable", "w_bits": 8},
            "w_bits: 8 with engine: portable, which takes weights of at most 7 bits; set w_bits: 7",
        ),
        (
            {"engine": "ncnn", "recipe": "paper"},
            "engine: ncnn runs integers, and recipe 'paper' has none; valid: recipe best, static, "
            "fast, thorough",
        ),
    ],
)
def test_what_an_engine_lacks_is_rejected(changes, message, tiny):
    with pytest.raises(AdaBMError, match=message):
        quantize(tiny, IMAGES[:1], **{**options("ncnn"), **changes})


def test_fewer_bits_of_weights_are_taken(tiny):
    net = quantized(tiny, "ncnn", w_bits=4)
    bits = [quantizer.bits for quantizer in net.weight_quantizers().values()]
    assert min(bits) < 8
    with torch.no_grad():
        assert torch.isfinite(net(IMAGES)).all()


@pytest.mark.parametrize(("saved", "asked"), [("openvino", "ncnn"), ("ncnn", "openvino")])
def test_checkpoints_for_other_engines_are_rejected(saved, asked, tiny):
    state = quantized(tiny, saved, recipe="static").state_dict()
    net = quantize(another_tiny(), IMAGES[:1], **options(asked, recipe="static"))
    with pytest.raises(
        AdaBMError,
        match=f"the checkpoint was quantized for engine: {saved}, the options say engine: {asked}",
    ):
        net.load_state_dict(state)


def test_another_engine_is_named_before_its_bits(tiny, tmp_path):
    save_checkpoint(quantized(tiny, "portable", w_bits=7), tmp_path / "net.pth")
    net = quantize(another_tiny(), IMAGES[:1], **options("onnxruntime"))
    with pytest.raises(AdaBMError, match="the options say engine: onnxruntime"):
        load_checkpoint(net, tmp_path / "net.pth")


def another_tiny():
    from basicsr.archs import build_network
    from conftest import TINY_EDSR

    return build_network(dict(TINY_EDSR))
