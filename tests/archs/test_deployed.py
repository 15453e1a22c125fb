"""Every architecture as an exported graph."""

import pytest
from agreement import check_agreement, quantized
from architectures import ARCHITECTURES

from adabm_basicsr import save_onnx

pytestmark = pytest.mark.runtimes

QUICK = ("EDSR x2", "SRVGGNetCompact x2")
# In these, a single value that comes to another grid point costs 54 dB. In ONNX Runtime few images
# have one: its floats are the simulation's to nearly all digits. OpenVINO's exponential and error
# function, and its sums, end in digits that differ from CPU to CPU: two thirds of images have one
# in SwinIR, a quarter in RDN.
SENSITIVE = ("SwinIR x2", "RDN x3")
ARCHITECTURE_PARAMETERS = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES
]


@pytest.mark.parametrize("name", ARCHITECTURE_PARAMETERS)
def test_runtimes_agree_with_the_simulation(name, tmp_path):
    net = quantized(ARCHITECTURES[name], attention_products="SwinIR" in name)
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx", runtimes=["onnxruntime"])
    typical = 60
    if name in SENSITIVE:
        typical = 50
    check_agreement(net, tmp_path / "net.onnx", typical=typical, runtimes=["openvino"])
