"""The kernels of GPUs compute what PyTorch's operations compute.

On a CPU they are run by Triton's interpreter, in an environment of their own: Triton isn't among
what the tests install.
"""

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from agreement import smooth
from environments import Environment
from small_networks import Interpolating

from adabm_basicsr import calibrate, finetune, quantize
from adabm_basicsr.quantization.quantizers import fake_quantize as module
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Other tests that are marked `gpu` may also be run on a CPU.
WITH_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SHAPE = (2, 3, 9, 13)
DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
    ),
    pytest.param("cuda", marks=[pytest.mark.gpu, WITH_GPU]),
]


@pytest.fixture
def kernels():
    pytest.importorskip("triton")
    from adabm_basicsr.quantization.quantizers import triton_kernels

    return triton_kernels


def random(*shape):
    return torch.rand(shape) + 0.5


GRIDS = {
    "of all": lambda: random(1),
    "of samples": lambda: random(2, 1, 1, 1),
    "of channels": lambda: random(1, 3, 1, 1),
    "of channels of samples": lambda: random(2, 3, 1, 1),
    "of values": lambda: random(*SHAPE),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


def results(x, upper, bits, integer, grad):
    """The quantized tensor and all gradients."""
    inputs = [value.clone().requires_grad_() for value in (x, -0.8 * upper, upper, bits)]
    out = fake_quantize(*inputs, integer)
    return [out, *torch.autograd.grad(out, inputs, grad)]


def by_kernels(monkeypatch, kernels, *args):
    """The same by kernels, which the fixture ``kernels`` gives."""
    calls = []

    def find_layout(x, tensors):
        calls.append(original(x, tensors))
        return calls[-1]

    original = kernels.find_layout
    monkeypatch.setattr(kernels, "find_layout", find_layout)
    monkeypatch.setattr(module, "_kernels_for", lambda x: kernels)
    found = results(*args)
    assert len(calls) == 2
    assert None not in calls
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("integer", [False, True], ids=["", "integers"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(monkeypatch, kernels, device, integer, grid, layout):
    x = LAYOUTS[layout](2 * torch.randn(SHAPE)).to(device)
    x[0, 0, 0, :2] = torch.tensor([1e30, float("nan")])
    upper = GRIDS[grid]().to(device)
    bits = torch.tensor([3.0, 4.0], device=device).view(2, 1, 1, 1)
    arguments = (x, upper, bits, integer, torch.randn(SHAPE, device=device))
    monkeypatch.setattr(module, "_kernels_for", lambda x: None)
    expected = results(*arguments)
    found = by_kernels(monkeypatch, kernels, *arguments)
    for value, of_operations in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(value, of_operations, rtol=1e-6, atol=0, equal_nan=True)
        assert value.stride() == x.stride()
    for value, of_operations in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(value, of_operations, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
def test_many_tiles(monkeypatch, kernels, device):
    """More values than a tile has, of one grid and of as many as values."""
    x = torch.randn(3, 40, 12, device=device)
    bits = torch.tensor(4.0, device=device)
    grad = torch.randn(x.shape, device=device)
    for shape in ((1,), (40, 1), (12,), x.shape):
        arguments = (x, random(*shape).to(device), bits, True, grad)
        monkeypatch.setattr(module, "_kernels_for", lambda x: None)
        expected = results(*arguments)
        with monkeypatch.context() as patched:
            found = by_kernels(patched, kernels, *arguments)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_goes_the_whole_way(monkeypatch, kernels, device):
    images = smooth(2, size=(12, 12)).to(device)
    networks = []
    for found in (None, kernels):
        monkeypatch.setattr(module, "_kernels_for", lambda x, found=found: found)
        torch.manual_seed(0)
        network = Interpolating(1).to(device)
        net = quantize(network, images[:1], w_bits=4, a_bits=4, recipe="paper")
        finetune(calibrate(net, [images]), [images] * 3, iterations_per_epoch=1)
        networks.append(net.state_dict())
    for key, value in networks[0].items():
        torch.testing.assert_close(networks[1][key], value, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.gpu
@WITH_GPU
def test_a_gpu_takes_them(kernels):
    assert module._kernels_for(torch.ones(1, device="cuda")) is kernels


def test_what_kernels_leave_to_pytorch(kernels):
    x = torch.randn(4, 5, 6)
    one = torch.ones(1, 1, 1)
    assert kernels.find_layout(x, [one]).tile == kernels.ONE_CELL
    assert kernels.find_layout(x, [torch.ones(1, 1, 6)]).tile == kernels.MANY_CELLS
    assert kernels.find_layout(x.double(), [one.double()]) is None
    assert kernels.find_layout(x.half(), [one]) is None
    assert kernels.find_layout(x[:, ::2], [one]) is None
    assert kernels.find_layout(x[:0], [one]) is None
    other_axes = torch.ones(2, 1, 2, 1, 2)
    assert kernels.find_layout(torch.ones(2, 3, 2, 3, 2), [other_axes]) is None


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter compiles nothing")
def test_they_compile_for_a_gpu(kernels):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    tensors = ("out", "x", "table", "grad_x", "sums", "grad")
    for kernel in (kernels._quantize_kernel, kernels._gradient_kernel):
        for is_integer in (False, True):
            constants = {"IS_INTEGER": is_integer, "TILE_CELLS": 64, "TILE_PLACES": 16}
            if kernel is kernels._gradient_kernel:
                constants["IS_LEARNED"] = True
            kinds = {}
            for name in kernel.arg_names:
                kinds[name] = "*fp32" if name in tensors else "i32"
                if name in constants:
                    kinds[name] = "constexpr"
            source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
            options = {"enable_fp_fusion": False}
            code = compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]
            # Each operation is rounded by itself, as those of PyTorch are.
            assert "div.rn.f32" in code
            assert not re.search(r"fma\.\w+\.f32|div\.(full|approx)", code)


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_kernels_are_tried_before_they_are_used(monkeypatch, kernels, caplog):
    find = module._kernels_of.__wrapped__
    assert find(torch.device("cpu")) is kernels
    monkeypatch.setattr(kernels, "quantize", lambda out, *_: out.fill_(1))
    assert find(torch.device("cpu")) is None
    assert "Triton fails there: it computes something else" in caplog.text


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs on a CPU")
def test_where_triton_fails_pytorch_takes_over(kernels, caplog):
    assert module._kernels_of.__wrapped__(torch.device("cpu")) is None
    assert "Fake quantization on cpu takes several kernels instead of one" in caplog.text


def test_why_triton_fails_is_one_line(monkeypatch, caplog):
    def find_layout(x, tensors):
        raise RuntimeError("at 12:8:\n    no compiler\n")

    monkeypatch.setitem(sys.modules, module.KERNELS, SimpleNamespace(find_layout=find_layout))
    assert module._kernels_of.__wrapped__(torch.device("cpu")) is None
    assert caplog.messages[-1].endswith("fails there: RuntimeError: at 12:8: no compiler")


def test_without_triton_pytorch_takes_over(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, module.KERNELS, raising=False)
    assert module._kernels_of.__wrapped__(torch.device("cpu")) is None


@pytest.mark.slow
def test_in_an_environment_with_triton(tmp_path):
    environment = Environment(tmp_path / "environment", "triton")
    environment.add_packages_from_here()
    for is_interpreted in ("0", "1"):
        environment.variables["TRITON_INTERPRET"] = is_interpreted
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__)]
        done = environment.run(*command, f"--rootdir={tmp_path}")
        assert done.returncode == 0, done.stdout[-3000:]
        assert " passed" in done.stdout
