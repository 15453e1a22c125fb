"""ONNX files that are read: ours, those of others, and damaged ones."""

import json

import numpy as np
import onnx
import pytest
from conftest import TINY_EDSR
from onnx import TensorProto, helper, numpy_helper

from adabm_basicsr import AdaBMError, OnnxNetwork, save_onnx
from adabm_basicsr.commands.inspect import show
from adabm_basicsr.deployment.inspection import inspect
from adabm_basicsr.deployment.onnx.reading import OnnxLayer, read_file, stored_layers
from adabm_basicsr.deployment.onnx.seal import sealed
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY

CORRUPT = r"cannot be read \(truncated or corrupt\)"


@pytest.fixture
def bad(tmp_path):
    return tmp_path / "bad.onnx"


def write_described(exported, target, description):
    """Write a copy with another description, or none."""
    model = onnx.load(exported)
    del model.metadata_props[:]
    if description is not None:
        helper.set_model_props(model, {DESCRIPTION_KEY: description})
    onnx.save(model, target)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "was not written by adabm-basicsr"),
        ("3", "was not written by adabm-basicsr"),
        ("{", CORRUPT),
        (json.dumps({"format": 99}), "has format 99; this version reads 1"),
        (json.dumps({"format": 1}), "is damaged, or was changed after the export"),
    ],
)
def test_descriptions_that_are_not_ours_are_rejected(description, message, exported, bad):
    write_described(exported, bad, description)
    with pytest.raises(AdaBMError, match=message):
        OnnxNetwork(bad)


def write_sealed(model, target, **changes):
    """Write a model with a changed description and a right checksum."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    description = {**json.loads(metadata[DESCRIPTION_KEY]), **changes}
    del model.metadata_props[:]
    helper.set_model_props(model, {DESCRIPTION_KEY: json.dumps(description)})
    target.write_bytes(sealed(model.SerializeToString()))


@pytest.mark.parametrize("multiple", ["8", [8], {}, None, True, 0, -3, 2.5, 10**9])
def test_wrong_size_multiples_are_rejected(multiple, exported, bad):
    write_sealed(onnx.load(exported), bad, size_multiple=multiple)
    with pytest.raises(AdaBMError, match=r"is damaged: its size_multiple is .* valid: 1 to 4096"):
        OnnxNetwork(bad)


@pytest.mark.parametrize("section", [3, "text", [1], None, {"type": ["a"], "recipe": {"b": 1}}])
def test_sections_of_wrong_kinds_are_shown_as_far_as_they_go(section, exported, bad):
    write_sealed(onnx.load(exported), bad, network=section, options=section, version=section)
    contents = inspect(bad)
    assert contents.facts["nodes"] > 10
    assert show(contents)


def test_graphs_that_take_no_image_are_rejected(exported, bad):
    for change in ("rename", "flatten", "add"):
        model = onnx.load(exported)
        value = model.graph.input[0]
        if change == "rename":
            helper_name = "picture"
            for node in model.graph.node:
                node.input[:] = [helper_name if name == "image" else name for name in node.input]
            value.name = helper_name
        elif change == "flatten":
            value.type.tensor_type.shape.dim[1].Clear()
        else:
            model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
        write_sealed(model, bad)
        with pytest.raises(AdaBMError, match=r"its graph doesn't take one input 'image'"):
            OnnxNetwork(bad)


def move_elsewhere(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights"


def make_nothing(model):
    del model.graph.output[0]


def stride(model):
    """A convolution whose output no longer fits to what it is added to."""
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    for entry in convs[-3].attribute:
        if entry.name == "strides":
            entry.ints[0] = 3


def enlarge(model):
    """Make a value of two gigabytes out of a constant of a few bytes."""
    sizes = numpy_helper.from_array(np.array([2**29]), "sizes")
    model.graph.initializer.append(sizes)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["sizes"], ["huge"]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (move_elsewhere, r"is damaged: it keeps '.*' in another file|cannot be read .*external"),
        (make_nothing, r"is damaged: its graph doesn't make 'output'"),
        (stride, r"is damaged: .*Incompatible dimensions"),
        (enlarge, r"is damaged: 'huge' is too large"),
    ],
)
def test_damaged_graphs_with_a_right_checksum_are_rejected(damage, message, exported, bad):
    model = onnx.load(exported)
    damage(model)
    write_sealed(model, bad)
    with pytest.raises(AdaBMError, match=message):
        OnnxNetwork(bad)


def test_types_that_onnx_does_not_know_are_shown_as_numbers(exported):
    model = onnx.load(exported)
    for tensor in model.graph.initializer:
        tensor.data_type = 255
    assert stored_layers(model)[0].type == "unknown (255)"


def test_damaged_files_are_rejected(exported, bad):
    for content in (exported.read_bytes()[:2000], b"no protobuf at all " * 40):
        bad.write_bytes(content)
        with pytest.raises(AdaBMError, match=CORRUPT):
            read_file(bad)
    with pytest.raises(AdaBMError, match=r"gone.onnx does not exist"):
        read_file(bad.with_name("gone.onnx"))


@pytest.mark.parametrize("level", [3, "1", True, None])
def test_a_class_that_there_is_not_is_rejected(level, edsr, tmp_path):
    save_onnx(edsr, tmp_path / "level.onnx", level=2)
    write_sealed(onnx.load(tmp_path / "level.onnx"), tmp_path / "bad.onnx", level=level)
    with pytest.raises(AdaBMError, match=r"its level is .*; valid: 0, 1 or 2"):
        OnnxNetwork(tmp_path / "bad.onnx")


def test_a_file_of_ours_says_what_it_holds(edsr, exported):
    file = read_file(exported)
    assert file.is_whole
    assert file.description["network"] == TINY_EDSR
    layers = stored_layers(file.model)
    assert len(layers) == len(edsr.weight_quantizers())
    assert layers[0].operator == "Conv"
    assert layers[0].shape == (TINY_EDSR["num_feat"], 3, 3, 3)
    assert {layer.type for layer in layers} == {"int4", "int8"}


def test_a_file_of_others_has_layers_but_no_description(bad):
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), "float32"), "weight")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, 8, 8])
    conv = helper.make_node("Conv", ["image", "weight"], ["output"])
    graph = helper.make_graph([conv], "other", [image], [output], [weight])
    onnx.save(helper.make_model(graph), bad)
    file = read_file(bad)
    assert file.description is None
    assert not file.is_whole
    assert stored_layers(file.model) == [OnnxLayer("output", "Conv", (3, 3, 1, 1), "float")]
