"""What holds of every runtime, whatever graph it runs."""

import platform
import subprocess
import sys

import numpy as np
import pytest
from agreement import quantized
from conftest import TINY_EDSR
from onnx import TensorProto, helper

from adabm_basicsr import AdaBMError, save_onnx
from adabm_basicsr.deployment.onnx.fusion import FORMS
from adabm_basicsr.deployment.runtimes import RUNTIMES, has_exact_int8


def test_every_runtime_has_a_form():
    assert {runtime.form for runtime in RUNTIMES.values()} <= set(FORMS)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="VNNI is of x86 CPUs")
def test_who_keeps_openvino_from_vnni_gets_the_graph_for_it(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    of_the_cpu = has_exact_int8()
    limits = {"avx2": False, "AVX512_CORE": False, "AVX512_CORE_VNNI": of_the_cpu}
    for limit, expected in limits.items():
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert has_exact_int8() == expected


FREED_ELSEWHERE = """
import os, signal, sys, threading
import torch
from adabm_basicsr import OnnxNetwork

networks = [OnnxNetwork(sys.argv[1])]
networks[0](torch.rand(1, 3, 16, 16))
thread = threading.Thread(target=networks.clear)
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_reach_a_process_whose_network_another_thread_freed(tmp_path):
    save_onnx(quantized(TINY_EDSR), tmp_path / "net.onnx")
    command = [sys.executable, "-X", "faulthandler", "-c", FREED_ELSEWHERE, tmp_path / "net.onnx"]
    run = subprocess.run(command, check=False, capture_output=True)
    assert (run.returncode, run.stdout) == (0, b"handled\n"), run.stderr


def graph_that_divides_by_four():
    """A graph that fails on images whose number of values is no multiple of four."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [4, "rest"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [4, -1])
    reshape = helper.make_node("Reshape", ["image", "shape"], ["output"])
    graph = helper.make_graph([reshape], "fixed", [image], [output], [shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_image_that_a_graph_cannot_take_gives_one_line(runtime):
    model = graph_that_divides_by_four().SerializeToString()
    compiled = RUNTIMES[runtime].compile(model, 2)  # on one thread, OpenVINO 2026.4 hides errors
    assert compiled.run(np.zeros((1, 3, 2, 2), np.float32)).shape == (4, 3)
    with pytest.raises(
        AdaBMError,
        match=r"(OpenVINO|ONNX Runtime) can't run the graph on \(1, 3, 2, 3\): .*[Rr]eshape",
    ):
        compiled.run(np.zeros((1, 3, 2, 3), np.float32))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bytes_that_are_no_graph_give_one_line(runtime):
    with pytest.raises(AdaBMError, match=r"(OpenVINO|ONNX Runtime) can't") as raised:
        RUNTIMES[runtime].compile(b"no graph", 1)
    assert "\n" not in str(raised.value)
