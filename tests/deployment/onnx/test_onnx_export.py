"""Exported files: what they hold, and that they run in other programs, with nothing around them."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from agreement import agreement, check_agreement, images, quantized, smooth
from conftest import TINY_EDSR
from onnx import TensorProto, numpy_helper
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, quantize, save_onnx


def run(path, image, *names):
    return onnxruntime.InferenceSession(path).run(names, {"image": image.numpy()})


@torch.no_grad()
def test_the_file_is_adaptive_by_itself(edsr, exported):
    classes = set()
    for image in images():
        output, level = run(exported, image, "output", "level")
        classes.add(int(level))
        assert level == int(edsr.image_mapping(image)) + 1
        assert agreement(torch.from_numpy(output), edsr(image)) >= 30
    assert classes == {0, 1, 2}


@torch.no_grad()
def test_images_below_the_multiple_are_mirrored_to_and_fro(tmp_path):
    net = quantized(TINY_EDSR, size_multiple=8)
    save_onnx(net, tmp_path / "net.onnx")
    for height, width in [(1, 2), (3, 4), (5, 9), (2, 17)]:
        image = images()[1][..., :height, :width]
        output = torch.from_numpy(run(tmp_path / "net.onnx", image, "output")[0])
        assert output.shape == net(image).shape
        assert agreement(output, net(image)) >= 30


def test_narrow_weights_are_stored_in_four_bits(edsr, exported):
    stored = {tensor.name: tensor for tensor in onnx.load(exported).graph.initializer}
    for name, quantizer in edsr.weight_quantizers().items():
        tensor = stored[f"network.{name}.weight_quantizer.integers"]
        kind = TensorProto.INT4 if quantizer.bits <= 4 else TensorProto.INT8
        assert tensor.data_type == kind
        indices = quantizer.grid_indices(edsr.network.get_submodule(name).weight).int()
        integers = indices - 2 ** (quantizer.bits - 1)
        assert np.array_equal(numpy_helper.to_array(tensor).astype(int), integers.numpy())


@torch.no_grad()
def test_a_file_of_one_class_has_no_choice_in_it(edsr, tmp_path):
    path = tmp_path / "level.onnx"
    save_onnx(edsr, path, level=2)
    model = onnx.load(path)
    image = images()[-1]
    assert [output.name for output in model.graph.output] == ["output"]
    assert all(tensor.data_type != TensorProto.INT4 for tensor in model.graph.initializer)
    output = torch.from_numpy(run(path, image, "output")[0])
    assert agreement(output, edsr(image)) >= 30


def test_files_of_one_class_are_fused(tmp_path):
    save_onnx(quantized({**TINY_EDSR, "upscale": 4}), tmp_path / "one.onnx", level=1)
    nodes = onnx.load(tmp_path / "one.onnx").graph.node
    shuffles = [node for node in nodes if node.op_type == "DepthToSpace"]
    assert shuffles[-1].output[0] == "output"


class NormBehindEnlargement(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 3, 3, padding=1)
        self.norm = norm

    def forward(self, x):
        y = F.interpolate(self.first(x), size=x.shape[2:], mode="bilinear")
        return x + self.last(self.norm(y))


def check_export(network, folder):
    net = quantize(network, smooth(1), fully_quantized=True)
    calibrate(net, [smooth(8)])
    save_onnx(net, folder / "net.onnx")
    check_agreement(net, folder / "net.onnx", typical=50)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_a_norm_without_weights_behind_an_enlargement(kind, tmp_path):
    check_export(NormBehindEnlargement(kind(8, affine=False)), tmp_path)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 2), (2, 3), (4, 1)])
def test_padding_to_the_same_size(kernel, dilation, tmp_path):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)]
    middle = nn.Conv2d(8, 8, kernel, padding="same", dilation=dilation)
    check_export(nn.Sequential(*layers[:2], middle, *layers[1:]), tmp_path)


def test_an_operation_that_onnx_lacks_is_refused_in_one_line(tmp_path, capfd):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(5), nn.Conv2d(8, 3, 3))
    with pytest.raises(AdaBMError, match=r"can't be written as ONNX: .*adaptive_avg_pool2d"):
        check_export(network, tmp_path)
    assert capfd.readouterr().out == ""


def test_published_quantizers_are_rejected(tmp_path):
    with pytest.raises(
        AdaBMError, match="recipe 'paper' quantizes as published, without an integer zero point"
    ):
        save_onnx(quantized(TINY_EDSR, recipe="paper"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
