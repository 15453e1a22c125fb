"""Graphs for CPUs that add up pairs of products in 16 bits."""

import numpy as np
import onnxruntime
import pytest
import torch
from agreement import agreement, images, quantized, smooth
from conftest import TINY_EDSR
from onnx.reference import ReferenceEvaluator

from adabm_basicsr.deployment.onnx.editing import EditedGraph
from adabm_basicsr.deployment.onnx.export import to_onnx
from adabm_basicsr.deployment.onnx.level import at_level
from adabm_basicsr.deployment.onnx.overflow import SAFE_WEIGHT, avoid_overflow


def count_of(model, kind):
    return sum(node.op_type == kind for node in model.graph.node)


@pytest.mark.parametrize(("bits", "kept"), [(7, True), (8, False)])
def test_products_that_would_overflow_run_in_float(bits, kept):
    net = quantized(TINY_EDSR, w_bits=bits, a_bits=bits, fully_quantized=False, recipe="static")
    before = at_level(to_onnx(net), 1)
    after = avoid_overflow(at_level(to_onnx(net), 1))
    same = count_of(before, "DequantizeLinear") == count_of(after, "DequantizeLinear")
    assert same is kept
    image = {"image": smooth(1).numpy()}
    outputs = []
    for model in (before, after):
        session = onnxruntime.InferenceSession(model.SerializeToString())
        outputs.append(torch.from_numpy(session.run(None, image)[0]))
    assert agreement(outputs[1], outputs[0]) >= 30


def test_the_first_layer_takes_each_channel_twice():
    model = at_level(to_onnx(quantized(TINY_EDSR)), 1)
    image = {"image": images()[1].numpy()}
    before = ReferenceEvaluator(model).run(None, image)[0]
    avoid_overflow(model)
    after = ReferenceEvaluator(model).run(None, image)[0]
    np.testing.assert_allclose(after, before, atol=1e-5)
    edited = EditedGraph(model)
    channels = []
    for dequantize in edited.of_type("DequantizeLinear"):
        if edited.is_constant(dequantize.input[0]):
            weight = edited.constant(dequantize.input[0])
            assert np.abs(weight.astype(int)).max() <= SAFE_WEIGHT
            channels.append(weight.shape[1])
    assert 6 in channels
