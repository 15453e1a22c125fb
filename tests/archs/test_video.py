"""Networks that take clips: found by running, quantized, fine-tuned, saved and loaded."""

import pytest
import torch
import torch.nn.functional as F
from architectures import VIDEO_ARCHITECTURES
from torch import nn
from video_networks import BITS, built, clip, quantized

from adabm_basicsr import (
    AdaBMError,
    calibrate,
    finetune,
    load_checkpoint,
    quantize,
    save_checkpoint,
)
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.deployment.packed import load_packed, save_packed
from adabm_basicsr.quantization.measures.cost import CostMeter
from adabm_basicsr.quantization.measures.coverage import measure_coverage
from adabm_basicsr.quantization.structure.clips import Clips, Least, find_least, find_taken_clips
from adabm_basicsr.quantization.structure.image_channels import find_example

FOUND = {
    "BasicVSR": Clips(5, any_length=True),
    "IconVSR": Clips(5, any_length=True),
    "BasicVSR++": Clips(5, any_length=True),
    "EDVR": Clips(5, any_length=False),
    "DUF": Clips(7, any_length=False),
    "TOFlow": Clips(7, any_length=False),
}


@pytest.fixture(scope="module")
def edvr():
    return calibrate(quantized("EDVR"), [clip("EDVR")])


def sqnr(net, batch):
    """Of what the network adds to the interpolated frames, in dB."""
    with torch.no_grad():
        output = net(batch)
        with net.full_precision():
            teacher = net(batch)
    frames = batch if teacher.dim() == 5 else batch[:, batch.shape[1] // 2]
    added = teacher - F.interpolate(
        frames.view(-1, *frames.shape[-3:]), size=teacher.shape[-2:], mode="bilinear"
    ).view_as(teacher)
    return 10 * torch.log10(added.square().mean() / (output - teacher).square().mean())


def check_round_trip(name, path, **options):
    net = quantized(name, **options)
    seen, other = clip(name), clip(name, seed=1)
    finetune(calibrate(net, [seen]), [seen], iterations_per_epoch=1)
    assert not net.gradient_problem
    assert sqnr(net, seen) >= 30
    save_checkpoint(net, path)
    again = load_checkpoint(quantized(name, seed=1, **options), path)
    with torch.no_grad():
        assert torch.equal(again(other), net(other))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "IconVSR" else [])
        for name in VIDEO_ARCHITECTURES
    ],
)
def test_round_trip(name, tmp_path):
    """Of fixed bits, so that it doesn't take long; others are slow, and so is the largest."""
    check_round_trip(name, tmp_path / "net.pth", ingredients={"phases": ["activation_range"]})


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEO_ARCHITECTURES)
def test_round_trip_of_a_registered_network(name, tmp_path):
    torch.manual_seed(0)
    net = AdaBMNetwork(network=dict(VIDEO_ARCHITECTURES[name]), recipe="static", **BITS)
    assert net.clips == FOUND[name]
    calibrate(net, [clip(name)])
    save_packed(net, tmp_path / "net.safetensors")
    unpacked = load_packed(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(unpacked(clip(name)), net(clip(name)))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["best", "paper"])
@pytest.mark.parametrize("name", ["BasicVSR", "EDVR"])
def test_recipes(name, recipe):
    net = quantized(name, recipe, w_bits=4, a_bits=4)
    batches = [clip(name, seed) for seed in range(2)]
    finetune(calibrate(net, batches), batches, iterations_per_epoch=1)
    with torch.no_grad():
        assert net(batches[0]).isfinite().all()


@pytest.mark.parametrize("name", ["EDVR", "TOFlow"])
def test_clips_are_found_by_trying(name):
    network = built(name)
    example = find_example(network)
    assert example.shape[:3] == (1, FOUND[name].frames, 3)
    assert find_taken_clips(network, example) == FOUND[name]


@pytest.mark.parametrize(
    ("name", "shape", "least"),
    [
        ("BasicVSR", (2, 24, 40), Least(side=33)),
        ("BasicVSR", (1, 40, 40), None),
        ("IconVSR", (1, 36, 36), Least(frames=5)),
        ("BasicVSR++", (2, 40, 64), Least(side=64)),
        ("EDVR", (5, 16, 16), None),
    ],
)
def test_the_least_that_a_network_takes(name, shape, least):
    """As docs/video.md says."""
    frames, height, width = shape
    assert find_least(built(name), torch.rand(1, frames, 3, height, width)) == least


def test_flow_stays_in_float_and_is_named():
    net = quantized("TOFlow")
    coverage = measure_coverage(net)
    assert list(net.layers()) == ["conv_1", "conv_2", "conv_3", "conv_4"]
    assert "spynet: flow estimation stays in float, " in str(coverage)
    assert coverage.skipped["spynet"].macs_share == pytest.approx(1 - coverage.macs)
    assert coverage.warning() is None


def test_bits_follow_the_frame_that_a_call_belongs_to():
    net = quantized("EDVR", w_bits=4, a_bits=4, ingredients={"adaptive": True})
    flat, rich = torch.full((1, 1, 3, 16, 20), 0.5), torch.rand(1, 1, 3, 16, 20)
    clips = torch.cat([flat, flat, rich, rich, flat, *[rich] * 5], dim=1).view(2, 5, 3, 16, 20)
    calibrate(net, [clips])
    with torch.no_grad():
        net.image_mapping.lower.fill_(10.0)
        net.image_mapping.upper.fill_(1e3)
    used = {}
    for name in ("conv_l2_1", "pcd_align.dcn_pack.l1.deformed.product", "reconstruction.0.conv1"):
        quantizer = net.layers()[name].input_quantizer
        quantizer.register_forward_hook(
            lambda quantizer, *_, name=name: used.setdefault(name, []).append(quantizer.last_bits)
        )
    with CostMeter(net) as meter, torch.no_grad():
        details = net(clips, details=True)
        cost = meter.read(samples=2)
    simple, middle = net.layers()["conv_l2_1"].input_quantizer.bits_of_layer() + torch.tensor(
        [-1, 0]
    )
    assert used["conv_l2_1"][0].tolist() == [
        bits.item() for bits in [simple, simple, middle, middle, simple, *[middle] * 5]
    ]
    product = used["pcd_align.dcn_pack.l1.deformed.product"]
    assert [(bits - bits[1]).tolist() for bits in product] == [
        [-1, 0],
        [-1, 0],
        [0, 0],
        [0, 0],
        [-1, 0],
    ]
    # Of what is fused the clip's mean complexity counts.
    assert used["reconstruction.0.conv1"][0].diff().item() == 0
    assert torch.equal(net.bits_for(clips), details.bits)
    assert details.bits[0] < details.bits[1]
    assert cost.fab == pytest.approx(float(details.bits.mean()))
    assert net.layers()["conv_l2_1"].input_quantizer.frames == 5
    of_frames = net.bits_of_frames(clips)
    assert of_frames[0].min() < details.bits[0] < of_frames[0].max()
    assert of_frames[0, 0] == of_frames[0, 4] < of_frames[0, 2]


class SeesFramesAndTheFirst(nn.Module):
    """Runs one layer on all frames at once, and on the first by itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, clip):
        frames = self.conv(clip.flatten(0, 1)).view(clip.shape)
        return clip + frames + self.conv(clip[:, 0]).unsqueeze(1)


def test_bits_of_frames_of_a_layer_that_sees_different_numbers_of_them():
    clips = torch.rand(2, 3, 3, 16, 20)
    net = quantize(SeesFramesAndTheFirst(), clips[:1], w_bits=4, a_bits=4, fully_quantized=True)
    calibrate(net, [clips])
    of_frames = net.bits_of_frames(clips)
    assert of_frames.shape == (2, 3)
    assert torch.isfinite(of_frames).all()


@pytest.mark.parametrize("shape", [(1, 3, 16, 20), (1, 4, 3, 16, 20), (1, 5, 1, 16, 20)])
def test_a_network_that_takes_clips_takes_nothing_else(edvr, shape):
    match = (
        rf"clips: torch.float32 of shape \({shape[0]}, .+valid: a float tensor \(B, 5, 3, H, W\)"
    )
    for use in (edvr, lambda images: calibrate(edvr, [images])):
        with pytest.raises(AdaBMError, match=match):
            use(torch.rand(shape))


def test_one_that_takes_images_takes_no_clips():
    net = quantize(nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(3)]), torch.rand(1, 3, 9, 9))
    with pytest.raises(
        AdaBMError, match=r"^images: torch.float32 of shape \(1, 5, 3, 9, 9\) can't"
    ):
        calibrate(net, [torch.rand(1, 5, 3, 9, 9)])
