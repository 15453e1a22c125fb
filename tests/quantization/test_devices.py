"""Whatever the package makes is on the device of what it is given, and the same as on the CPU."""

import pytest
import torch
from second_device import DEVICE, OnSecondDevice, SecondDevice
from small_networks import GlobalAttention, conv
from torch import nn

from adabm_basicsr import calibrate, finetune, quantize, summarize
from adabm_basicsr.quantization.calibration.calibrate import representative
from adabm_basicsr.quantization.calibration.observers import percentile_range
from adabm_basicsr.quantization.finetuning.finetune import Finetuner, FinetuneSettings
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer

PAPER = {"recipe": "paper", "w_bits": 4, "a_bits": 4}
FAST = {**PAPER, "recipe": "fast"}
FOR_TENSORRT = {"recipe": "fast", "w_bits": 8, "a_bits": 8, "engine": "tensorrt"}
CALIBRATED = {**PAPER, "recipe": "static"}


class SmallBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(4, 4), conv(4, 4)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class Small(nn.Module):
    """A head, a block and a tail, of four features: each operation takes its time here."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.last = conv(3, 4), SmallBlock(), conv(4, 3)

    def forward(self, image):
        return image + self.last(self.block(self.first(image)))


@pytest.fixture
def second():
    with SecondDevice() as mode:
        yield mode


def images():
    """Patches of which some are complex and some are simple."""
    generator = torch.Generator().manual_seed(0)
    contrast = torch.tensor([1.0, 0.02, 0.5, 0.3]).view(4, 1, 1, 1)
    noise = torch.rand(4, 3, 16, 16, generator=generator)
    return (0.5 + contrast * (noise - 0.5)).split(2)


def quantized_on(device, network, options):
    """A network that went the whole way on a device, its output and what is said of it."""
    torch.manual_seed(0)
    batches = [batch.to(device) for batch in images()]
    net = quantize(network().to(device), batches[0][:1], fully_quantized=True, **options)
    calibrate(net, batches)
    if net.config.finetuning.phases:
        finetune(net, batches * 2, iterations_per_epoch=1)
    with torch.no_grad():
        output = net(batches[0])
    return net, output, str(summarize(net, batches[0]))


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (Small, PAPER),
        (Small, FAST),
        (Small, CALIBRATED),
        pytest.param(Small, {**PAPER, "recipe": "best"}, marks=pytest.mark.slow),
        pytest.param(Small, FOR_TENSORRT, marks=pytest.mark.slow),
        pytest.param(GlobalAttention, FAST, marks=pytest.mark.slow),
    ],
    ids=["paper", "fast", "static", "best", "engine", "attention"],
)
def test_the_whole_way_on_another_device(network, options):
    expected, expected_output, expected_summary = quantized_on("cpu", network, options)
    with SecondDevice():
        net, output, summary = quantized_on(DEVICE, network, options)
        state = net.state_dict()
        for key, value in expected.state_dict().items():
            assert state[key].device == DEVICE, key
            assert torch.equal(state[key].cpu(), value), key
        assert output.device == DEVICE
        assert torch.equal(output.cpu(), expected_output)
        assert summary == expected_summary


@pytest.mark.parametrize("options", [PAPER, FAST], ids=["paper", "fast"])
def test_a_step_waits_once_and_a_forward_pass_never(second, options):
    batches = [batch.to(DEVICE) for batch in images()]
    net = quantize(Small().to(DEVICE), batches[0][:1], fully_quantized=True, **options)
    calibrate(net, batches)
    with torch.no_grad():
        second.waits.clear()
        net(batches[0])
        assert second.waits == []

    tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=1, total_iterations=6)
    if tuner.needs_clipping:
        tuner.clip(batches[0])
    for iteration in range(1, len(tuner.phases) + 1):
        second.waits.clear()
        losses = tuner.step(batches[0], iteration)
        # Whether the loss is finite.
        assert second.waits == ["aten._local_scalar_dense.default"]
        assert losses["l_pix"].device == DEVICE


@pytest.mark.slow
def test_an_optimizer_goes_on_from_a_state_that_was_read_on_the_cpu(second):
    def finetuner(device):
        batches = [batch.to(device) for batch in images()]
        net = quantize(Small().to(device), batches[0][:1], **FAST)
        calibrate(net, batches)
        tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=1, total_iterations=6)
        return tuner, batches[0]

    saved, batch = finetuner("cpu")
    saved.step(batch, 1)
    tuner, batch = finetuner(DEVICE)
    tuner.optimizers[0].load_state_dict(saved.optimizers[0].state_dict())
    tuner.step(batch, 2)
    second.waits.clear()
    tuner.step(batch, 3)
    assert len(second.waits) == 1


def test_equal_images_keep_their_order(second):
    same = torch.full((40, 3, 8, 8), 0.5)
    same[:, :, 0, 0] += torch.arange(40).view(40, 1) / 64
    same[:, :, 7, 7] -= torch.arange(40).view(40, 1) / 64
    for device in ("cpu", DEVICE):
        chosen = representative([same.to(device)], 40)
        assert torch.equal(chosen.cpu(), same)


def test_percentiles_of_equal_values(second):
    values = torch.tensor([3.0, 1, 1, 2, 3, 3, 1, 2, 2, 2]).repeat(500)
    quantizer = ActivationQuantizer(4)
    expected = percentile_range(values, quantizer)
    found = percentile_range(values.to(DEVICE), quantizer.to(DEVICE))
    assert torch.equal(found.cpu(), expected)


def test_the_second_device_is_as_strict_as_a_gpu(second):
    there = torch.ones(2, 3).to(DEVICE)
    assert (there + torch.tensor(1.0)).device == DEVICE
    for wrong in (
        lambda: there + torch.ones(2, 3),
        lambda: torch.cat([there, torch.ones(1, 3)]),
        lambda: there @ torch.ones(3, 2),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    for draws in (
        lambda: torch.rand_like(there),
        lambda: torch.randn(2, device=DEVICE),
        lambda: there.bernoulli_(),
        lambda: nn.functional.dropout(there),
    ):
        with pytest.raises(RuntimeError, match="random numbers"):
            draws()
    assert there[0].argsort().tolist() == [2, 1, 0]
    assert there[0].argsort(stable=True).tolist() == [0, 1, 2]
    for waits in (
        there.cpu,
        there.sum().item,
        lambda: there.new_tensor([1.0]),
        lambda: torch.tensor([1.0], device=DEVICE),
        lambda: bool((there > 0).all()),
        lambda: there[there > 0],
    ):
        second.waits.clear()
        waits()
        assert len(second.waits) == 1
    second.waits.clear()
    assert isinstance(torch.zeros(2, device=DEVICE), OnSecondDevice)
    assert second.waits == []
