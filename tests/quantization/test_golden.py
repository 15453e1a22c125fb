"""The published algorithm's own results, step by step, on a tiny EDSR."""

from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.calibration.clipping import clip
from adabm_basicsr.quantization.finetuning.finetune import Finetuner, FinetuneSettings

NAMES = {
    "head.0": "conv_first",
    "body.3": "conv_after_body",
    "tail.0.0": "upsample.0",
    "tail.1": "conv_last",
}
# Of losses and of what is learned. The published code ran in float32: fully quantized, a few of its
# values came to another grid point than in double precision.
AFTER_FINETUNING = {"nonfq": (1e-5, 1e-5), "fq": (0.01, 1e-3)}


class Golden:
    """One run of the published algorithm: ``nonfq`` (body only) or ``fq`` (fully quantized)."""

    def __init__(self, tag):
        self.tag = tag
        self.file = np.load(Path(__file__).parents[1] / "data" / "adabm_golden.npz")
        self.fully_quantized = tag == "fq"
        self.images = torch.from_numpy(self.file["calib_lr_255"]) / 255
        self.test_images = torch.from_numpy(self.file["test_lr_255"]) / 255

    def __getitem__(self, key):
        return self.file[f"{self.tag}/{key}"]

    def network(self):
        net = EDSR(3, 3, num_feat=8, num_block=3, upscale=2, res_scale=1, img_range=255.0)
        prefix = f"{self.tag}/fp/"
        state = {}
        for key in self.file.files:
            if key.startswith(prefix):
                module, kind = key.removeprefix(prefix).rsplit(".", 1)
                state[f"{NAMES.get(module, module)}.{kind}"] = torch.from_numpy(self.file[key])
        net.load_state_dict(state)
        return net

    def calibrated(self):
        net = quantize(
            self.network(), self.images[:1], fully_quantized=self.fully_quantized, recipe="paper"
        )
        return calibrate(net, [self.images[:3], self.images[3:]])


@pytest.fixture(params=["nonfq", "fq"], scope="module")
def golden(request):
    return Golden(request.param)


def close(actual, expected, rel=1e-4):
    np.testing.assert_allclose(
        np.asarray(actual), np.asarray(expected), rtol=rel, atol=rel * np.abs(expected).max()
    )


def inputs(net, attribute, adaptive_only=False):
    quantizers = [layer.input_quantizer for layer in net.layers().values()]
    return [getattr(q, attribute).item() for q in quantizers if q.adaptive or not adaptive_only]


def run(net, images):
    with torch.no_grad():
        details = net(images, details=True)
    return details.output.numpy() * 255, details.bits.numpy()


def test_golden_quantized_layers(golden):
    net = golden.calibrated()
    assert list(net.layers()) == [NAMES.get(name, name) for name in golden["qconv_names"]]


def test_golden_full_precision_output(golden):
    close(golden.network()(golden.test_images).detach().numpy() * 255, golden["fp_sr"], 1e-5)


def test_golden_image_complexity(golden):
    close(image_complexity(golden.test_images), golden["image_complexity_test"], 1e-5)


def test_golden_calibration(golden):
    net = golden.calibrated()
    close(inputs(net, "lower"), golden["calib/lower_a"])
    close(inputs(net, "upper"), golden["calib/upper_a"])
    close(weight_ranges(net), golden["calib/upper_w"])
    assert inputs(net, "layer_factor", adaptive_only=True) == golden["calib/layer_bit"].tolist()
    close(
        [net.image_mapping.lower.item(), net.image_mapping.upper.item()], golden["calib/image_l_u"]
    )


def test_golden_calibrated_output(golden):
    output, bits = run(golden.calibrated(), golden.test_images)
    np.testing.assert_array_equal(bits, golden["calibrated_fab"])
    assert (
        np.abs(output - golden["calibrated_sr"]).mean()
        < 0.01 * np.abs(golden["calibrated_sr"]).mean()
    )


def test_golden_bit_aware_clipping(golden):
    net = clip(golden.calibrated(), golden.images[:2])
    close(inputs(net, "lower"), golden["bac/lower_a"])
    close(inputs(net, "upper"), golden["bac/upper_a"])


def test_golden_finetuning(golden):
    """In double precision, from the published ranges: no CPU moves a value to another grid point.

    In float32 the last digit of a range or of a sum, which each CPU rounds in its own way, does: at
    3 bits that moves a loss of this tiny network by 3 % and all pixels by 2 % within a few
    iterations.
    """
    of_losses, of_ranges = AFTER_FINETUNING[golden.tag]
    net = golden.calibrated()
    _take_ranges(net, golden, "calib")
    net.double()
    images = golden.images.double()
    tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=3)
    log = []
    for iteration in range(1, 19):
        start = 2 * ((iteration - 1) % 3)
        losses = tuner.step(images[start : start + 2], iteration)
        log.append([float(losses[key]) for key in ("l_pix", "l_feat", "l_bit", "fab")])
    expected = golden["finetune/log_epoch_pix_skt_bitloss_fab"][:, 1:]
    np.testing.assert_allclose(np.array(log), expected, rtol=of_losses)
    for attribute, key in (("lower", "lower_a"), ("upper", "upper_a")):
        close(inputs(net, attribute), golden[f"finetuned/{key}"], of_ranges)
    close(weight_ranges(net), golden["finetuned/upper_w"], of_ranges)
    close(
        inputs(net, "layer_factor", adaptive_only=True),
        golden["finetuned/layer_bit_param"],
        of_ranges,
    )
    close(
        [net.image_mapping.lower.item(), net.image_mapping.upper.item()],
        golden["finetuned/image_l_u"],
        of_ranges,
    )
    test_images = golden.test_images.double()
    np.testing.assert_array_equal(run(net, test_images)[1], golden["finetuned_fab"])
    _take_ranges(net, golden, "finetuned")
    output, bits = run(net, test_images)
    np.testing.assert_array_equal(bits, golden["finetuned_fab"])
    published = golden["finetuned_sr"]
    assert np.abs(output - published).mean() < 0.001 * np.abs(published).mean()
    # A value that came to another grid point moves the pixels around it.
    assert np.isclose(output, published, rtol=1e-4, atol=1e-4 * published.max()).mean() > 0.95


def weight_ranges(net):
    return [layer.weight_quantizer.upper.item() for layer in net.layers().values()]


@torch.no_grad()
def _take_ranges(net, golden, stage):
    quantizers = [layer.input_quantizer for layer in net.layers().values()]
    weights = [layer.weight_quantizer for layer in net.layers().values()]
    for modules, attribute, key in (
        (quantizers, "lower", "lower_a"),
        (quantizers, "upper", "upper_a"),
        (weights, "upper", "upper_w"),
    ):
        for module, value in zip(modules, golden[f"{stage}/{key}"].flatten(), strict=True):
            getattr(module, attribute).fill_(float(value))
