"""Random networks through all that a network goes through: the same picture, or one line.

A network is quantized, saved, loaded, packed, exported, and run in every form at three sizes.
"""

import math
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st
from random_networks import images, may_be_refused, networks

from adabm_basicsr import AdaBMError, calibrate, finetune, load_network, save_checkpoint
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork, build_base
from adabm_basicsr.deployment.onnx.export import save_onnx
from adabm_basicsr.deployment.packed import save_packed
from adabm_basicsr.deployment.runtimes import RUNTIMES
from adabm_basicsr.quantization.structure.sizes import run_padded

LEAST_PSNR = 45.0  # dB, of pixels
# Share of the networks that do nothing that a graph can't express.
MOST_REFUSED = 0.05
NUDGE = 1e-4  # of pixels, to see what a network makes of it
MOST_AMPLIFIED = 10.0

SIZES = st.lists(st.tuples(st.integers(8, 24), st.integers(8, 24)), min_size=3, max_size=3)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "recipe": st.sampled_from(["fast", "static"]),
        "fully_quantized": st.booleans(),
        "attention_products": st.booleans(),
    },
)


@torch.no_grad()
def outcome(network, options, sizes, iterations, folder):
    """What becomes of a network: ran, refused or chaotic; anything else is an error."""
    pictures = []
    for number, size in enumerate(sizes):
        pictures.append(images(1, size, seed=10 + number))
    base = build_base(network).eval()
    options = {"w_bits": 8, "a_bits": 8, "recipe": "fast", **options}
    try:
        net = AdaBMNetwork(network=network, **options)
        if is_chaotic(base, net.size_multiple, pictures):
            return "chaotic"
        check_forms(quantized(net, iterations), pictures, folder)
    except AdaBMError as error:
        message = str(error)
        note(message)
        assert message
        assert "\n" not in message
        return "refused"
    return "ran"


def is_chaotic(base, multiple, pictures):
    """Whether a network in full precision makes much of next to nothing, or takes no such sizes."""
    generator = torch.Generator().manual_seed(0)
    for picture in pictures:
        change = NUDGE * torch.randn(picture.shape, generator=generator)
        try:
            output = run_padded(base, picture.clone(), multiple)
            moved = run_padded(base, picture + change, multiple)
        except RuntimeError:
            return True
        amplified = (moved - output).square().mean() / change.square().mean()
        if not amplified.sqrt() <= MOST_AMPLIFIED:
            return True
    return False


def quantized(net, iterations):
    """Calibrated on a few patches, and fine-tuned where there is something to fine-tune."""
    batches = [images(3, (16, 16), seed=1), images(3, (16, 20), seed=2)]
    calibrate(net, batches)
    if iterations and net.config.recipe == "fast":
        with torch.enable_grad():
            finetune(net, batches[:1] * iterations, iterations_per_epoch=1)
    return net


def check_forms(net, pictures, folder):
    """Every form of a network makes the same pictures."""
    expected = [net(picture) for picture in pictures]
    save_checkpoint(net, folder / "net.pth")
    save_packed(net, folder / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        loaded = load_network(folder / name)
        for picture, output in zip(pictures, expected, strict=True):
            assert torch.equal(loaded(picture), output), name
    save_onnx(net, folder / "net.onnx")
    for runtime in RUNTIMES:
        exported = load_network(folder / "net.onnx", runtime=runtime, threads=1)
        for picture, output in zip(pictures, expected, strict=True):
            found = exported(picture)
            assert found.shape == output.shape, (runtime, picture.shape)
            agreement = psnr(found, output)
            assert agreement >= LEAST_PSNR, (runtime, picture.shape, agreement)


def psnr(output, expected):
    """Of pixels, in dB."""
    noise = (output.clamp(0, 1) - expected.clamp(0, 1)).square().mean()
    return 10 * math.log10(1 / max(float(noise), 1e-20))


def run_examples(count, part, folder):
    """Run ``count`` random networks; ``part`` says which."""
    outcomes = Counter()

    @seed(part)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    @given(
        network=networks(),
        options=OPTIONS,
        sizes=SIZES,
        iterations=st.sampled_from([0, 0, 0, 1]),
    )
    def run(network, options, sizes, iterations):
        found = outcome(network, options, sizes, iterations, folder)
        kind = "excused" if may_be_refused(network) else "plain"
        outcomes[f"{found} {kind}"] += 1

    run()
    print(dict(outcomes))
    assert outcomes["refused plain"] <= MOST_REFUSED * count
    assert outcomes["ran plain"] >= count / 2


def test_random_networks(tmp_path):
    run_examples(6, 0, tmp_path)


# Networks that the tests below found, computed wrongly by a runtime.
FOUND = {
    # OpenVINO 2026.4 with VNNI: a linear layer's input wasn't clipped.
    "clip of features": [
        {"op": "conv"},
        {"op": "block"},
        {"op": "channel_attention", "linear": True},
    ],
}


@pytest.mark.runtimes
@pytest.mark.parametrize("operations", FOUND.values(), ids=FOUND.keys())
def test_networks_that_failed_once(operations, tmp_path):
    network = {"type": "RandomNetwork", "operations": operations}
    assert outcome(network, {"fully_quantized": True}, [(8, 8)] * 3, 0, tmp_path) == "ran"


@pytest.mark.slow
def test_more_random_networks(tmp_path):
    run_examples(50, 1, tmp_path)


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(100, 110))
def test_thousands_of_random_networks(part, tmp_path):
    run_examples(500, part, tmp_path)
