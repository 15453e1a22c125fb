"""Shuffles come late, and layers before them compute what they did behind them."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from agreement import quantized, smooth
from conftest import TINY_EDSR
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from adabm_basicsr.deployment.onnx.editing import EditedGraph
from adabm_basicsr.deployment.onnx.export import to_onnx
from adabm_basicsr.deployment.onnx.fusion import fuse
from adabm_basicsr.deployment.onnx.level import at_level
from adabm_basicsr.deployment.onnx.shuffles import unshuffled_kernel


def copy(model):
    return onnx.ModelProto.FromString(model.SerializeToString())


def run(model, image):
    return ReferenceEvaluator(model).run(None, {"image": image.numpy()})[0]


def kinds(model):
    return [node.op_type for node in model.graph.node]


def test_the_last_layer_comes_before_the_shuffle():
    model = at_level(to_onnx(quantized({**TINY_EDSR, "upscale": 4})), 1)
    assert kinds(model).count("DepthToSpace") == 2
    edited = EditedGraph(fuse(model))
    assert edited.of_type("DepthToSpace")[-1].output[0] == "output"
    last = edited.of_type("Conv")[-1]
    weight = edited.constant_of(edited.maker(last.input[1]), 0)
    assert weight.shape == (12, 4 * TINY_EDSR["num_feat"], 3, 3)


def test_layers_stay_behind_a_shuffle_where_that_takes_less_work():
    fused = fuse(at_level(to_onnx(quantized({**TINY_EDSR, "upscale": 3})), 1))
    shapes = [tuple(t.dims) for t in fused.graph.initializer if len(t.dims) == 4]
    # 27 channels would take two passes of 16, nine times as wide.
    assert (3, TINY_EDSR["num_feat"], 3, 3) in shapes


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3, 5, 9]),
    st.integers(2, 4),
    st.integers(0, 2**32 - 1),
)
def test_a_convolution_before_a_shuffle_equals_one_behind_it(outputs, inputs, size, block, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, size, size, generator=generator)
    x = torch.randn(1, inputs * block**2, 5, 4, generator=generator)
    kernel = torch.from_numpy(unshuffled_kernel(weight.numpy(), block))
    early = F.pixel_shuffle(F.conv2d(x, kernel, padding=kernel.shape[-1] // 2), block)
    late = F.conv2d(F.pixel_shuffle(x, block), weight, padding=size // 2)
    torch.testing.assert_close(early, late, rtol=1e-4, atol=1e-4)


def graph(nodes, constants, channels=8):
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, 4, 4])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    tensors = [
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in constants.items()
    ]
    made = helper.make_graph(
        [helper.make_node(*node, **own) for node, own in nodes], "g", [image], [output], tensors
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


SHUFFLE = (("DepthToSpace", ["image"], ["large"]), {"blocksize": 2, "mode": "CRD"})


@pytest.mark.parametrize(
    ("name", "value", "moves"),
    [
        ("a number", 2.0, True),
        ("of channels", np.arange(2.0).reshape(1, 2, 1, 1), True),
        ("of channels, without a batch", np.arange(2.0).reshape(2, 1, 1), True),
        ("of columns", np.arange(8.0), False),
        ("of pixels", np.arange(64.0).reshape(1, 1, 8, 8), False),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_differs_from_pixel_to_pixel_stays_behind(name, value, moves, first):
    inputs = ["large", "value"] if first else ["value", "large"]
    model = graph([SHUFFLE, (("Sub", inputs, ["output"]), {})], {"value": value})
    image = smooth(1, channels=8, size=(4, 4))
    fused = fuse(copy(model))
    assert kinds(fused) == (["Sub", "DepthToSpace"] if moves else ["DepthToSpace", "Sub"])
    np.testing.assert_array_equal(run(fused, image), run(model, image))


def test_what_is_used_twice_stays_where_it_is():
    model = graph(
        [SHUFFLE, (("Relu", ["large"], ["a"]), {}), (("Add", ["a", "large"], ["output"]), {})], {}
    )
    assert kinds(fuse(copy(model))) == ["DepthToSpace", "Relu", "Add"]


def test_what_one_operation_takes_twice_stays_where_it_is():
    model = graph([SHUFFLE, (("Add", ["large", "large"], ["output"]), {})], {})
    assert kinds(fuse(copy(model))) == ["DepthToSpace", "Add"]
