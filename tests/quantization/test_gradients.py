"""Networks that gradients don't go through are calibrated, and left as calibration left them."""

import logging

import pytest
import torch
from users_networks import (
    Autocast,
    CheckpointedConv,
    HalfOutput,
    InPlaceOperators,
    InPlaceSigmoid,
    InPlaceTanh,
    NoBackward,
    OperatorsTwin,
    PartInference,
    PartNoGrad,
    Reentrant,
    ReentrantConv,
    SigmoidTwin,
    WholeInference,
    WholeNoGrad,
    WithDetachedNumpy,
    WithNumpy,
)

from adabm_basicsr import calibrate, finetune, load_checkpoint, quantize
from adabm_basicsr.quantization.checkpoint import save_checkpoint
from adabm_basicsr.quantization.gradients import LOGGER
from adabm_basicsr.quantization.measures.psnr import self_psnr
from adabm_basicsr.quantization.network import Stage

IMAGES = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(1))
WITHOUT = {
    PartInference: "return F.relu(x) * weight",
    WithNumpy: "return x * torch.from_numpy(np.tanh(x.numpy()))",
    NoBackward: "return _Swish.apply(x)",
    WholeNoGrad: "@torch.no_grad()",
    WholeInference: "@torch.inference_mode()",
    CheckpointedConv: "",
    ReentrantConv: "",
}
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


@pytest.fixture
def warned():
    """Warnings so far."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    LOGGER.addHandler(handler)
    yield records
    LOGGER.removeHandler(handler)


def quantized(network, **options):
    torch.manual_seed(0)
    return quantize(network().eval(), IMAGES[:1], **options)


def output(net):
    with torch.no_grad():
        return net(IMAGES)


@pytest.mark.parametrize("recipe", ["best", "paper"])
@pytest.mark.parametrize("network", WITHOUT)
def test_a_network_without_gradients_keeps_what_calibration_found(
    network, recipe, warned, tmp_path
):
    options = {"w_bits": 8, "a_bits": 8, "recipe": recipe}
    net = calibrate(quantized(network, **options), [IMAGES])
    calibrated = output(net)
    finetune(net, [IMAGES[:2]] * 3, iterations_per_epoch=1)
    assert torch.equal(output(net), calibrated)
    assert net.stage == (Stage.CLIPPED if recipe == "paper" else Stage.CALIBRATED)
    with torch.no_grad():
        assert self_psnr(net, IMAGES) > 35

    [line] = warned
    assert line.startswith(f"{network.__name__} can't be run with gradients: ")
    assert "fine-tun" in line
    place = line.partition("users_networks.py:")[2].partition(")")[0]
    assert WITHOUT[network] in line_of_networks(int(place))

    save_checkpoint(net, tmp_path / "net.pth")
    loaded = load_checkpoint(quantized(network, **options), tmp_path / "net.pth")
    assert torch.equal(output(loaded), calibrated)


def line_of_networks(number):
    from pathlib import Path

    import users_networks

    return Path(users_networks.__file__).read_text().splitlines()[number - 1]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("recipe", ["best", "paper"])
@pytest.mark.parametrize(
    "network", [PartNoGrad, WithDetachedNumpy, Autocast, HalfOutput, InPlaceTanh]
)
def test_a_network_with_gradients_in_part_or_of_other_types_is_fine_tuned(
    network, recipe, bits, warned
):
    last = {"keep_best": False}
    net = quantized(network, w_bits=bits, a_bits=bits, recipe=recipe, ingredients=last)
    calibrate(net, [IMAGES])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    finetune(net, [IMAGES[:2]] * 3, iterations_per_epoch=1)
    assert any(not torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not warned
    with torch.no_grad():
        assert self_psnr(net, IMAGES) > 35


def assert_learned_alike(calibrated, output, twin):
    """Fine-tuning moved both outputs the same way.

    CPUs differ in last digits, which rounding can make a whole step of: one in 300 of the squared
    move was seen. Half a gradient in one of ten blocks gives one in 20 at least.
    """
    assert (output - twin).square().sum() < 0.02 * (twin - calibrated).square().sum()


@pytest.mark.parametrize("recipe", ["best", "paper"])
def test_in_place_code_has_the_gradients_of_its_twin(recipe, warned):
    outputs = []
    for network in (InPlaceSigmoid, SigmoidTwin):
        net = calibrate(quantized(network, w_bits=4, a_bits=4, recipe=recipe), [IMAGES])
        calibrated = output(net)
        finetune(net, [IMAGES[:2]] * 6, iterations_per_epoch=2)
        assert not torch.equal(output(net), calibrated)
        outputs.append(output(net))
    assert_learned_alike(calibrated, *outputs)
    assert not warned


def test_all_ways_to_write_in_place_have_the_gradients_of_their_twin(warned):
    outputs = []
    last = {"keep_best": False}
    for network in (InPlaceOperators, OperatorsTwin):
        net = quantized(network, w_bits=8, a_bits=8, recipe="fast", ingredients=last)
        calibrate(net, [IMAGES])
        calibrated = output(net)
        finetune(net, [IMAGES[:2]] * 2, iterations_per_epoch=2)
        assert net.overwrites == (network is InPlaceOperators)
        assert not torch.equal(output(net), calibrated)
        outputs.append(output(net))
    assert_learned_alike(calibrated, *outputs)
    assert not warned


def test_a_checkpoint_around_no_layer_hinders_sensitivities_alone(warned):
    last = {"keep_best": False}
    net = quantized(Reentrant, w_bits=8, a_bits=8, recipe="best", ingredients=last)
    calibrate(net, [IMAGES])
    assert len(warned) == 1
    calibrated = output(net)
    finetune(net, [IMAGES[:2]] * 3)
    assert not torch.equal(output(net), calibrated)


def test_trying_leaves_parameters_and_random_numbers_alone():
    net = calibrate(quantized(WholeNoGrad, recipe="paper"), [IMAGES])
    required = [parameter.requires_grad for parameter in net.parameters()]
    state = torch.get_rng_state()
    finetune(net, [IMAGES[:2]])
    assert [parameter.requires_grad for parameter in net.parameters()] == required
    assert torch.equal(torch.get_rng_state(), state)
