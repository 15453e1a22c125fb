"""Every architecture as an exported graph."""

import pytest
from agreement import check_agreement, quantized
from architectures import ARCHITECTURES

from adabm_basicsr import save_onnx

QUICK = ("EDSR x2", "SRVGGNetCompact x2")
ARCHITECTURE_PARAMETERS = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES
]


@pytest.mark.parametrize("name", ARCHITECTURE_PARAMETERS)
def test_runtimes_agree_with_the_simulation(name, tmp_path):
    net = quantized(ARCHITECTURES[name], attention_products="SwinIR" in name)
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx")
