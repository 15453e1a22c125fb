"""Quantizers as operators: where integers lie, with zero points and without."""

import numpy as np
import onnx
import pytest
import torch
from agreement import (
    THREADS,
    agreement,
    check_agreement,
    in_onnxruntime,
    in_openvino,
    quantized,
    smooth,
)
from conftest import TINY_EDSR

from adabm_basicsr import OnnxNetwork, save_onnx
from adabm_basicsr.deployment.onnx.editing import EditedGraph
from adabm_basicsr.deployment.onnx.export import to_onnx
from adabm_basicsr.deployment.onnx.level import at_level
from adabm_basicsr.deployment.runtimes import RUNTIMES

COMPACT = {
    "type": "SRVGGNetCompact",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_conv": 2,
    "upscale": 4,
}


def test_channels_with_zero_points_of_their_own_are_clipped_before():
    net = quantized(COMPACT)
    own = []
    for quantizer in net.activation_quantizers().values():
        if quantizer.channel_shift is not None and quantizer.channel_shift.any():
            own.append(quantizer)
    edited = EditedGraph(at_level(to_onnx(net), 1))
    assert own
    assert len(edited.of_type("Max")) == len(edited.of_type("Min")) == len(own)
    for quantize in edited.of_type("QuantizeLinear"):
        assert np.ptp(edited.zeros_of(quantize)) == 0  # one for all, which integer kernels want


def test_symmetric_grid_points_are_where_they_were(tmp_path):
    net = quantized(TINY_EDSR, fully_quantized=False)  # 8-bit layers alone lose by it
    save_onnx(net, tmp_path / "net.onnx", symmetric=True)
    edited = EditedGraph(onnx.load(tmp_path / "net.onnx"))
    quantizations = edited.of_type("QuantizeLinear")
    assert quantizations
    for quantize in quantizations:
        zeros = edited.zeros_of(quantize)
        assert zeros.dtype == np.int8
        assert not zeros.any()
    check_agreement(net, tmp_path / "net.onnx")


def test_symmetric_integers_of_eight_bits_lose_little(tmp_path):
    net = quantized(TINY_EDSR)
    save_onnx(net, tmp_path / "net.onnx", symmetric=True)
    check_agreement(net, tmp_path / "net.onnx", least=25, typical=25, most=25)


ENLARGING = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 1}
SYMMETRIC = {
    "EDSR": {**TINY_EDSR, "upscale": 4},
    "Compact": COMPACT,
    "RRDBNet": {**ENLARGING, "num_grow_ch": 8, "scale": 4},
}


@pytest.mark.parametrize("network", SYMMETRIC.values(), ids=SYMMETRIC.keys())
def test_runtimes_agree_on_symmetric_graphs(network, tmp_path):
    save_onnx(quantized(network), tmp_path / "net.onnx", symmetric=True)
    image = smooth(1)
    outputs = []
    for runtime in RUNTIMES:
        outputs.append(
            OnnxNetwork(tmp_path / "net.onnx", runtime, threads=THREADS).at_level(image, 1)
        )
    assert agreement(*outputs) >= 50  # 42 where the ends of clips are mistaken


@pytest.fixture(scope="module", params=SYMMETRIC)
def net_of_eight_bits(request):
    # Products of wider weights are added up wrongly by CPUs without VNNI.
    bits = {"w_bits": 7, "a_bits": 8, "layers": {"*": {"w_bits": 7}}}
    return quantized(SYMMETRIC[request.param], recipe="fast", **bits)


@pytest.mark.parametrize("level", [None, 1])
def test_symmetric_files_are_right_in_programs_that_load_them_as_they_are(
    level, net_of_eight_bits, tmp_path
):
    net = net_of_eight_bits
    save_onnx(net, tmp_path / "net.onnx", symmetric=True, level=level)
    image = smooth(1)
    with torch.no_grad():
        expected = net(image)
    for start in (in_openvino, in_onnxruntime):
        output = start(tmp_path / "net.onnx")(image.numpy())
        assert agreement(torch.from_numpy(output), expected) >= 45, start.__name__
