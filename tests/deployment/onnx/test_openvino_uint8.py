"""Files for OpenVINO whose integers are moved from layer to layer."""

import sys
from pathlib import Path

import onnx
import openvino
import pytest
import torch
from agreement import THREADS, check, in_openvino, quantized
from conftest import TINY_EDSR
from engine_networks import NETWORKS

from adabm_basicsr import OnnxNetwork
from adabm_basicsr.deployment.engines import save_for
from adabm_basicsr.deployment.onnx.engine_files import save_integers
from adabm_basicsr.deployment.onnx.fusion import CONCATENATIONS_UNMOVED
from adabm_basicsr.deployment.runtimes import RUNTIMES, has_exact_int8
from adabm_basicsr.quantization.engines import CONCATENATIONS

EXAMPLE_PROJECT = Path(__file__).parents[2] / "example_project"
OPTIONS = {"engine": "openvino_uint8", "recipe": "fast", "w_bits": 8, "a_bits": 8}
SHOWN = {
    "EDSR": {**TINY_EDSR, "upscale": 4},
    "RRDBNet": NETWORKS["RRDBNet"],
    # Attention of a single channel, which 16 features would have, may not compile in OpenVINO.
    "IMDN": {"type": "IMDN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_modules": 2},
}
pytestmark = pytest.mark.skipif(not has_exact_int8(), reason="8-bit weights want VNNI")


@pytest.fixture(scope="module", params=SHOWN)
def net(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(EXAMPLE_PROJECT), *sys.path])
        yield quantized(SHOWN[request.param], **OPTIONS, custom_imports=["inhouse.archs"])


@pytest.mark.parametrize("form", [CONCATENATIONS, CONCATENATIONS_UNMOVED])
def test_the_file_itself_gives_the_pixels_of_the_simulation(form, net, tmp_path):
    path = tmp_path / "net.onnx"
    found = save_integers(net, path, form)
    assert not found.floats
    onnx.checker.check_model(path, full_check=True)
    check(net, in_openvino(path))


def test_networks_are_loaded_from_it(net, tmp_path):
    path = tmp_path / "net.onnx"
    save_for("openvino_uint8", net, path)
    for runtime in RUNTIMES:
        network = OnnxNetwork(path, runtime, threads=THREADS)
        check(net, lambda image, run=network: run(torch.from_numpy(image)).numpy())


def test_what_is_moved_is_rounded_once(tmp_path):
    """OpenVINO computes all layers and concatenations of RRDBNet's blocks on bytes."""
    net = quantized(SHOWN["RRDBNet"], **OPTIONS)
    save_for("openvino_uint8", net, tmp_path / "net.onnx")
    core = openvino.Core()
    model = core.read_model(tmp_path / "net.onnx")
    model.reshape([1, 3, 24, 26])
    executed = {}
    for op in core.compile_model(model, "CPU").get_runtime_model().get_ops():
        facts = {
            key: str(getattr(value, "value", value)) for key, value in op.get_rt_info().items()
        }
        executed.setdefault(facts["layerType"], []).append(facts["runtimePrecision"])
    assert set(executed["Convolution"]) == {"u8"}
    assert executed["Concatenation"] == ["u8"] * (3 * 4)
    assert "FakeQuantize" not in executed
