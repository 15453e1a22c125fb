"""The whole way on a GPU: `pytest -m gpu`, on a machine that has one.

`ADABM_GPU_TESTS_ON=cpu pytest -m gpu` runs the same on the CPU, which shows that the tests
themselves work. What is compared with the CPU: bits are equal, PSNR differs by 0.02 dB at most.
"""

import copy
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from agreement import smooth
from architectures import ARCHITECTURES
from basicsr.archs import build_network
from conftest import TINY_EDSR, photograph
from faults import read_state, run_processes
from layer_types import LAYERS, X, network_of
from machine import GpuWaits
from small_networks import GlobalAttention, Interpolating
from torch import nn
from users_networks import Functional
from video_networks import CLIPS, built, clip

from adabm_basicsr import calibrate, finetune, load_network, quantize, save_checkpoint, save_packed
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.commands.main import main
from adabm_basicsr.quantization.finetuning.finetune import Finetuner, FinetuneSettings
from adabm_basicsr.quantization.measures.memory import forward_bytes
from adabm_basicsr.quantization.measures.psnr import pixel_psnr
from adabm_basicsr.quantization.recipes import RECIPES

pytestmark = pytest.mark.gpu

DEVICE = torch.device(os.environ.get("ADABM_GPU_TESTS_ON", "cuda"))
GPUS = torch.cuda.device_count() if DEVICE.type == "cuda" else 0
DB = 0.02  # that a PSNR may differ by from that on the CPU
BITS = {"w_bits": 4, "a_bits": 4, "fully_quantized": True}
LATEST = "models/net_g_latest.pth"


def batches(count=3, channels=3):
    return [smooth(4, channels, (24, 24), seed=seed) for seed in range(count)]


def on_device(tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


def of_edsr(recipe="fast", iterations=6):
    """The tiny EDSR, quantized on the device, with its batches there."""
    torch.manual_seed(0)
    images = on_device(batches())
    net = AdaBMNetwork(network=dict(TINY_EDSR), recipe=recipe, **BITS).to(DEVICE)
    calibrate(net, images)
    if net.config.finetuning.phases:
        finetune(net, images * (iterations // 3), iterations_per_epoch=1)
    return net, images


def bits_of(net):
    """Bits of each weight and of each input, of which layers share them out."""
    of_weights = {name: quantizer.bits for name, quantizer in net.weight_quantizers().items()}
    of_inputs = {}
    for name, quantizer in net.activation_quantizers().items():
        of_inputs[name] = quantizer.bits_of_layer().item()
    return of_weights, of_inputs


# BasicSR's pipelines


@pytest.fixture
def run(workspace):
    """Calibrate, fine-tune, validate and test; gives metrics and checkpoint of the run."""

    def run(name, gpus, recipe, *flags, **changes):
        network = {**workspace.network_options(), "recipe": recipe}
        training = {**changes}
        if not RECIPES[recipe].finetuning.phases:
            training["train__total_iter"] = 0
        workspace.train(*flags, name=name, num_gpu=gpus, network_g=network, **training)
        path = f"experiments/{name}/{LATEST}"
        workspace.test(name=name, num_gpu=gpus, network_g=network, path__pretrain_network_g=path)
        metrics = json.loads(Path(f"results/{name}/metrics.json").read_text())["Val"]
        return metrics, read_state(path)

    return run


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_gives_what_it_gives_on_a_cpu(run, recipe):
    metrics, state = run("device", min(GPUS, 1), recipe)
    expected, expected_state = run("cpu", 0, recipe)
    assert metrics["psnr"] == pytest.approx(expected["psnr"], abs=DB)
    assert metrics["fab"] == pytest.approx(expected["fab"], abs=1e-6)
    for key, value in expected_state.items():
        if key.endswith("allocated"):
            assert torch.equal(state[key], value), key
        assert state[key].device.type == "cpu"


@pytest.mark.parametrize("gpus", [min(GPUS, 1), 0], ids=["there", "on a CPU"])
def test_a_run_goes_on_where_it_was_interrupted(run, gpus):
    whole, _ = run("whole", min(GPUS, 1), "fast")
    shutil.copytree("experiments/whole", "experiments/cut")
    for path in Path("experiments/cut").glob("*/*"):
        if path.stem in ("12", "net_g_12", "net_g_latest"):
            path.unlink()
    resumed, _ = run("cut", gpus, "fast", "--auto_resume")
    log = max(Path("experiments/cut").glob("*.log"), key=lambda path: path.stat().st_mtime)
    assert "iter: 6." in log.read_text()
    assert resumed["psnr"] == pytest.approx(whole["psnr"], abs=DB)


def test_torchrun(workspace):
    """Two processes where there are two GPUs, or none at all."""
    processes = 1 if GPUS == 1 else 2
    workspace.write(
        workspace.train_options(
            num_gpu=min(GPUS, processes),
            datasets__train__batch_size_per_gpu=2 // processes,
            train__total_iter=6,
        )
    )
    command = ("-m", "adabm_basicsr.train", "-opt", "options.yml", "--launcher", "pytorch")
    done = run_processes(processes, *command)
    assert done.returncode == 0, done.stderr[-3000:]
    workspace.train(name="one", num_gpu=min(GPUS, 1), train__total_iter=6)
    state = read_state(f"experiments/tiny/{LATEST}")
    for key, value in read_state(f"experiments/one/{LATEST}").items():
        torch.testing.assert_close(state[key], value, rtol=0.02, atol=0.02, msg=key)


def test_data_parallel():
    net, images = of_edsr()
    parallel = nn.DataParallel(net, list(range(GPUS)) or None)
    with torch.no_grad():
        assert pixel_psnr(parallel(images[0]), net(images[0])) > 50
    tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=1, total_iterations=2)
    losses = tuner.step(images[0], 1, parallel)
    assert torch.isfinite(losses["l_pix"])


# Layers and networks


def test_every_bit_width_has_as_many_grid_points_as_on_a_cpu():
    """Powers of GPUs are rounded otherwise, but those of two come out whole."""
    bits = torch.arange(2.0, 9.0)
    assert torch.equal((2 ** bits.to(DEVICE) - 1).cpu(), 2**bits - 1)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_computes_what_it_computes_on_a_cpu(name):
    torch.manual_seed(0)
    network = network_of(LAYERS[name]())
    net = calibrate(quantize(network, X[:1], recipe="static", **BITS), [X])
    there = copy.deepcopy(net).to(DEVICE)
    with torch.no_grad():
        output = there(X.to(DEVICE))
        # A value on the edge between two grid points may be rounded the other way.
        difference = (output.cpu() - net(X)).abs()
    assert difference.median() < 1e-4
    images = X.to(DEVICE)
    trained = quantize(network.to(DEVICE), images[:1], recipe="fast", **BITS)
    finetune(calibrate(trained, [images]), [images] * 2, iterations_per_epoch=1)


def of_architecture(name):
    return lambda: build_network(dict(ARCHITECTURES[name]))


NETWORKS = {
    "attention": GlobalAttention,
    "functions with parameters": Functional,
    "interpolation": lambda: Interpolating(2),
    "RCAN x2": of_architecture("RCAN x2"),
    "ECBSR x4": of_architecture("ECBSR x4"),
    "RDN x2": of_architecture("RDN x2"),
    "SwinIR x2": of_architecture("SwinIR x2"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_reach_the_quality_that_they_reach_on_a_cpu(name):
    torch.manual_seed(0)
    images = [batch[:2] for batch in batches(2)]
    check_same_as_on_a_cpu(NETWORKS[name](), images, recipe="fast", **BITS)


@pytest.mark.parametrize("engine", ["tensorrt", "ncnn"])
def test_networks_for_engines(engine):
    """Sums are quantized too, integers have signs, biases are rounded."""
    torch.manual_seed(0)
    options = {**BITS, "w_bits": 8, "a_bits": 8, "recipe": "fast", "engine": engine}
    check_same_as_on_a_cpu(NETWORKS["RCAN x2"](), batches(2), **options)


OF_CLIPS = {
    # It has convolutions over frames, and takes minutes where calibration tries much.
    "DUF": {"recipe": "static", "ingredients": {"phases": ["activation_range"]}},
    "EDVR": {"recipe": "fast"},
    "BasicVSR": {"recipe": "fast"},
}


@pytest.mark.parametrize("name", OF_CLIPS)
def test_networks_that_take_clips(name):
    """With convolutions over frames, with deformable ones, and recurrent."""
    clips = [clip(name, seed) for seed in range(2)]
    options = {**BITS, "size_multiple": CLIPS[name][3], **OF_CLIPS[name]}
    net = check_same_as_on_a_cpu(built(name), clips, **options)
    finetune(net, on_device(clips), iterations_per_epoch=1)
    assert not net.gradient_problem


def check_same_as_on_a_cpu(network, images, **options):
    """Bits that are allocated, and quality after calibration; gives the network on the device."""
    truth = upscaled_by(network, images[0])
    quality = {}
    allocated = {}
    for device in (torch.device("cpu"), DEVICE):
        there = [batch.to(device) for batch in images]
        net = quantize(copy.deepcopy(network).to(device), there[0][:1], **options)
        calibrate(net, there)
        allocated[device] = bits_of(net)
        with torch.no_grad():
            quality[device] = pixel_psnr(net(there[0]).cpu(), truth)
    assert allocated[DEVICE] == allocated[torch.device("cpu")]
    assert quality[DEVICE] == pytest.approx(quality[torch.device("cpu")], abs=DB)
    return net


@torch.no_grad()
def upscaled_by(network, images):
    """What stands for ground truth: the network's own output, as far from it as photographs are."""
    made = network.eval()(images)
    noise = torch.randn(made.shape, generator=torch.Generator().manual_seed(0))
    return made + 0.03 * noise


# Numbers


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_autocast(kind):
    images = on_device(batches())
    torch.manual_seed(0)
    net = quantize(Interpolating(2).to(DEVICE), images[0][:1], w_bits=8, a_bits=8, recipe="fast")
    calibrate(net, images)
    with torch.no_grad():
        expected = net(images[0])
        with torch.autocast(DEVICE.type, kind):
            output = net(images[0])
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=8 * torch.finfo(kind).eps)
    with torch.autocast(DEVICE.type, kind):
        finetune(net, images, iterations_per_epoch=1)
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())


def test_channels_last():
    net, images = of_edsr()
    with torch.no_grad():
        expected = net(images[0])
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        output = last(images[0].to(memory_format=torch.channels_last))
    assert (output - expected).abs().median() < 1e-4
    assert pixel_psnr(output, expected) > 50


def test_checkpoints_move_between_devices(tmp_path):
    net, images = of_edsr()
    with torch.no_grad():
        expected = net(images[0]).cpu()
    for name, save in {"net.pth": save_checkpoint, "net.safetensors": save_packed}.items():
        save(net, tmp_path / name)
        here = load_network(tmp_path / name)
        back = copy.deepcopy(here).to(DEVICE)
        with torch.no_grad():
            assert pixel_psnr(here(images[0].cpu()), expected) > 50
            assert pixel_psnr(back(images[0]).cpu(), expected) > 50
        assert bits_of(here) == bits_of(net)


def test_upscale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, _ = of_edsr()
    save_packed(net, "net.safetensors")
    cv2.imwrite("in.png", photograph(20, 26))
    pixels = []
    for device in (DEVICE.type, "cpu"):
        command = ["upscale", "-m", "net.safetensors", "-i", "in.png", "--device", device]
        main([*command, "-o", f"{device}.png", "--overwrite"])
        pixels.append(cv2.imread(f"{device}.png").astype(int))
    assert np.median(np.abs(pixels[0] - pixels[1])) == 0


# Cost


def test_memory_follows_from_one_batch():
    """Four times the batches take what they hold themselves, and little more."""
    peaks = []
    for count in (2, 8):
        images = on_device(batches(count))
        net = AdaBMNetwork(network=dict(TINY_EDSR), recipe="fast", **BITS).to(DEVICE)
        peaks.append(peak_bytes(net, images))
    assert peaks[1] < 3 * peaks[0]


def peak_bytes(net, images):
    """The most bytes that tensors take at once in calibration."""
    if DEVICE.type == "cpu":
        return forward_bytes(lambda _: calibrate(net, images), images[0])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    calibrate(net, images)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_a_step_waits_for_the_device_once(recipe):
    net, images = of_edsr(recipe)
    tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=1, total_iterations=9)
    tuner.step(images[0], 1)
    for iteration in range(2, 2 + len(tuner.phases)):
        # What libraries load when they are first used counts for nothing.
        tuner.step(images[0], iteration)
        with GpuWaits(DEVICE) as waits:
            tuner.step(images[0], iteration)
        assert waits.count <= 1
