"""A quality that was asked for is reached, with layers or images in float where 8 bits don't do."""

import copy
from contextlib import nullcontext

import pytest
import torch
from clip_networks import CarriesOn
from conftest import TINY_EDSR, photographs
from torch import nn

from adabm_basicsr import (
    AdaBMError,
    calibrate,
    load_checkpoint,
    load_network,
    quantize,
    save_checkpoint,
    save_packed,
)
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.calibration.budget import cost_share
from adabm_basicsr.quantization.calibration.complex_images import fewest_images, most_complex
from adabm_basicsr.quantization.calibration.quality import (
    LOWEST,
    PsnrDropGoal,
    SelfPsnrGoal,
    choose_for_float,
    hold_back,
    pooled_psnr,
    worst_images,
)
from adabm_basicsr.quantization.measures.cost import size_bytes
from adabm_basicsr.quantization.measures.coverage import measure_coverage
from adabm_basicsr.quantization.measures.psnr import pixel_psnr, psnr_of_errors, self_errors
from adabm_basicsr.quantization.structure.surgery import KEPT_IN_FLOAT

IMAGES = photographs(20, 24)
OPTIONS = {"recipe": "fast", "fully_quantized": True}


def network(**options):
    torch.manual_seed(0)
    return AdaBMNetwork(network=dict(TINY_EDSR), **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def best_of_eight_bits():
    """Self-PSNR in dB that 8 bits reach on images that weren't fitted."""
    net = calibrate(network(w_bits=8, a_bits=8), [IMAGES[:16]])
    return pooled_psnr(net, IMAGES[16:])


@pytest.fixture(scope="module")
def kept(best_of_eight_bits):
    """A network of which 8 bits alone don't reach the target."""
    target = {"self_psnr": best_of_eight_bits + 1.5}
    return calibrate(network(target=target), [IMAGES[:16]])


def test_target_beyond_eight_bits_is_met_on_images_that_were_not_fitted(kept):
    wanted = kept.config.target["self_psnr"]
    _, held = hold_back([IMAGES[:16]])
    assert SelfPsnrGoal(wanted, held).missing(kept) <= 0
    assert pooled_psnr(kept, IMAGES[16:]) > wanted - 1
    found = kept.kept
    assert found.layers == kept.kept_in_float
    assert 0 < len(found.layers) < 8
    assert found.before < wanted <= found.after
    assert f"{len(found.layers)} layers kept in float" in str(found)


def test_layers_in_float_count_as_such(kept):
    found = kept.kept
    coverage = measure_coverage(kept)
    for name in found.layers:
        assert coverage.skipped[name].reason == KEPT_IN_FLOAT
        assert type(kept.network.get_submodule(name)).__name__ == "Conv2d"
    assert coverage.macs == pytest.approx(1 - found.macs_share)
    at_eight = calibrate(network(w_bits=8, a_bits=8), [IMAGES[:16]])
    added = cost_share(kept, "bitops", IMAGES) - cost_share(at_eight, "bitops", IMAGES)
    assert added == pytest.approx(found.bitops_share, rel=0.1)


def test_files_keep_them_in_float(kept, tmp_path):
    with torch.no_grad():
        expected = kept(IMAGES)
    save_checkpoint(kept, tmp_path / "net.pth")
    save_packed(kept, tmp_path / "net.safetensors")
    by_options = load_checkpoint(network(target=kept.config.target), tmp_path / "net.pth")
    loaded = [by_options]
    for file in ("net.pth", "net.safetensors"):
        loaded.append(load_network(tmp_path / file))
    for net in loaded:
        assert net.kept_in_float == kept.kept_in_float
        with torch.no_grad():
            torch.testing.assert_close(net(IMAGES), expected, atol=2e-6, rtol=0)
    with pytest.raises(AdaBMError, match="quantized layers, the options give"):
        load_checkpoint(network(), tmp_path / "net.pth")


def test_another_calibration_begins_with_all_layers(kept):
    net = copy.deepcopy(kept)
    net.quantize_kept()
    assert len(net.plan.layers) == 8
    assert net.kept is None
    assert net.stage == 0
    calibrate(net, [IMAGES[:16]])
    assert net.kept == kept.kept


@pytest.mark.runtimes
def test_exported_file_keeps_them_in_float(kept, tmp_path):
    from adabm_basicsr import OnnxNetwork, save_onnx

    save_onnx(kept, tmp_path / "net.onnx")
    with torch.no_grad():
        expected = kept(IMAGES[:2])
    output = OnnxNetwork(tmp_path / "net.onnx")(IMAGES[:2])
    assert (output - expected).abs().max() < 1 / 255


@pytest.mark.slow
def test_engines_with_integer_sums_meet_it_too(tiny):
    options = {**OPTIONS, "engine": "onnxruntime", "w_bits": 8, "a_bits": 8}
    plain = calibrate(quantize(tiny, IMAGES[:1], **options), [IMAGES])
    wanted = pooled_psnr(plain, IMAGES) + 1
    net = quantize(tiny, IMAGES[:1], **options, target={"self_psnr": wanted})
    calibrate(net, [IMAGES])
    assert SelfPsnrGoal(wanted, [IMAGES]).missing(net) < 0.5
    assert net.kept_in_float


def test_chosen_layers_are_the_dearest_for_their_macs(kept):
    net = calibrate(network(w_bits=8, a_bits=8), [IMAGES[:16]])
    few = choose_for_float(net, IMAGES[:8], 0.5)
    many = choose_for_float(net, IMAGES[:8], 6)
    assert 0 < len(few) < len(many) < len(net.plan.layers)


def test_out_of_reach_says_the_nearest():
    with pytest.raises(
        AdaBMError,
        match=r"^target: self_psnr: 99 is out of reach: with all layers but one in float it is",
    ):
        calibrate(network(target={"self_psnr": 99}), [IMAGES[:8]])


def test_one_of_four_images_is_held_back():
    numbered = torch.arange(10.0).view(10, 1, 1, 1)
    fitted, held = hold_back(list(numbered.split(3)))
    assert torch.cat(held).flatten().tolist() == [3, 7]
    assert torch.cat(fitted).flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    fitted, held = hold_back([numbered[:2]])
    assert fitted[0] is not None
    assert torch.equal(held[0], numbered[:2])


def test_margin_is_three_standard_errors_of_the_pooled_error(kept):
    errors = self_errors(kept, IMAGES)
    bound = errors.mean() + 3 * errors.std() / len(errors) ** 0.5
    goal = SelfPsnrGoal(45.0, [IMAGES])
    assert goal.missing(kept) == pytest.approx(45 - float(psnr_of_errors(bound)), abs=1e-3)
    single = float(psnr_of_errors(errors[0]))
    assert SelfPsnrGoal(single, [IMAGES[:1]]).missing(kept) == pytest.approx(0, abs=1e-3)


def test_one_image_far_below_the_target_counts(kept):
    noise = torch.rand(1, 3, 24, 24).round()
    images = torch.cat([noise, IMAGES[:1].expand(60, -1, -1, -1)])
    psnr = psnr_of_errors(self_errors(kept, images))
    assert psnr[1] > psnr[0] + LOWEST + 1
    wanted = float(psnr[0]) + LOWEST + 1
    assert SelfPsnrGoal(wanted, [images]).missing(kept) == pytest.approx(1, abs=1e-3)


def test_layers_are_chosen_by_the_worst_images(kept):
    worst = self_errors(kept, worst_images(kept, IMAGES, 4))
    assert worst.tolist() == sorted(self_errors(kept, IMAGES).tolist(), reverse=True)[:4]


def pairs_of(net):
    """LR images with ground truth that full precision gets within 30 dB of."""
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for index in range(16, 20):
        low = IMAGES[index : index + 1]
        with torch.no_grad(), net.full_precision():
            output = net(low)
        pairs.append((low, output + 10**-1.5 * torch.randn(output.shape, generator=generator)))
    return pairs


@pytest.mark.parametrize("allowed", [0.02, 0.5])
def test_loss_of_psnr_stays_within_the_target(allowed):
    net = network(target={"psnr_drop": allowed})
    pairs = pairs_of(net)
    calibrate(net, [IMAGES[:8]], pairs)
    goal = PsnrDropGoal(allowed, pairs)
    assert goal.drop(net) <= allowed
    assert goal.missing(net) <= 0
    bits = [q.bits_of_layer().item() for q in net.activation_quantizers().values()]
    assert (sum(bits) / len(bits) > 5) == (allowed < 0.1)


def test_loss_of_psnr_of_the_middle_frame_of_a_clip():
    """Where a network makes all frames, and the set has the truth of one."""
    net = quantize(CarriesOn(), torch.rand(1, 3, 3, 24, 24), fully_quantized=True, recipe="static")
    clip = IMAGES[:3].unsqueeze(0)
    calibrate(net, [clip])
    with torch.no_grad(), net.full_precision():
        truth = net(clip) + 0.03
    of_clip = PsnrDropGoal(0.1, [(clip, truth[:, 1])])
    one_by_one = []
    for full in (True, False):
        with torch.no_grad(), net.full_precision() if full else nullcontext():
            one_by_one.append(pixel_psnr(net(clip)[:, 1], truth[:, 1]))
    assert of_clip.drop(net) == pytest.approx(one_by_one[0] - one_by_one[1])


def test_loss_of_psnr_needs_ground_truth():
    with pytest.raises(AdaBMError, match="target: psnr_drop needs images with ground truth"):
        calibrate(network(target={"psnr_drop": 0.1}), [IMAGES[:4]])


class Details(nn.Module):
    """Adds what it makes of details alone, so that quantization costs flat images nothing."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="replicate", bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.last = nn.Conv2d(8, 3, 3, padding=1, bias=False)
        weight = self.first.weight.data
        weight -= weight.mean((2, 3), keepdim=True)

    def forward(self, x):
        return x + self.last(self.second(self.first(x).relu()).relu())


def few_details():
    """Of eight images two are photographs and the others flat."""
    images = torch.full((24, 3, 24, 24), 0.2)
    images[0::8] = IMAGES[0:3]
    images[3::8] = IMAGES[3:6]
    return images


def of_details(**options):
    torch.manual_seed(0)
    options = {**OPTIONS, "w_bits": 8, "a_bits": 8, **options}
    return quantize(Details(), IMAGES[:1], **options)


@pytest.fixture(scope="module")
def kept_images():
    """A network that meets its target with the most complex images in float."""
    net = calibrate(of_details(), [few_details()])
    _, held = hold_back([few_details()])
    wanted = 1 - SelfPsnrGoal(0, held).missing(net)
    return calibrate(of_details(target={"self_psnr": wanted}), [few_details()])


def test_images_are_kept_in_float_where_that_is_cheaper(kept_images):
    found = kept_images.kept
    assert found.layers == []
    assert kept_images.kept_in_float == []
    assert 0 < found.images_share <= 0.25
    fitted, held = hold_back([few_details()])
    goal = SelfPsnrGoal(
        kept_images.config.target["self_psnr"], [torch.cat(held), torch.cat(fitted)]
    )
    assert goal.missing(kept_images) <= 0
    assert found.before < found.after
    assert f"the most complex {100 * found.images_share:.1f} % of the images" in str(found)
    assert found.bytes == size_bytes(kept_images) - size_bytes(of_details())


def test_fewest_images_are_found(kept_images):
    net = copy.deepcopy(kept_images)
    net.full_precision_above = None
    fitted, held = hold_back([few_details()])
    goal = SelfPsnrGoal(
        kept_images.config.target["self_psnr"], [torch.cat(held), torch.cat(fitted)]
    )
    found = fewest_images(net, goal)
    assert 0 < found.share <= 0.25
    assert net.full_precision_above is None
    complexities = torch.cat([image_complexity(images) for images in goal.images()])
    fewer = most_complex(complexities, round(found.share * len(complexities)) - 1)
    net.keep_images_in_float(fewer.above)
    assert goal.missing(net) > 0


def test_half_of_the_images_at_most_are_kept_in_float(kept_images):
    net = copy.deepcopy(kept_images)
    net.full_precision_above = None
    assert fewest_images(net, SelfPsnrGoal(140, [IMAGES])) is None


@pytest.mark.slow
def test_another_calibration_begins_with_all_images(kept_images):
    net = copy.deepcopy(kept_images)
    net.quantize_kept()
    assert net.full_precision_above is None
    calibrate(net, [few_details()])
    assert net.kept == kept_images.kept


def test_images_that_were_asked_for_are_described():
    net = calibrate(of_details(full_precision_images=0.125), [few_details()])
    assert net.kept.images_share == 0.125
    assert net.kept.before < net.kept.after
    added = net.kept.bitops_share / 0.125
    assert added == pytest.approx(
        1 - cost_share(calibrate(of_details(), [IMAGES]), "bitops", IMAGES)
    )
