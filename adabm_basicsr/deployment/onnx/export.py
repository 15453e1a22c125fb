"""Writes a quantized network as an ONNX graph that chooses its bits itself and that runtimes execute as integers.

The graph takes one ``image``, ``(1, C, H, W)`` in 0..1, and gives the ``output`` and the ``level``: which of the three
image levels (0, 1, 2) the image's complexity chose. Weights of up to four bits are stored as INT4, others as INT8.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from adabm_basicsr.deployment.freeze import freeze
from adabm_basicsr.deployment.onnx.fusion import fuse
from adabm_basicsr.deployment.onnx.graph import use_operators
from adabm_basicsr.deployment.onnx.level import IMAGE, LEVEL, MIDDLE, OUTPUT, at_level
from adabm_basicsr.deployment.onnx.seal import sealed
from adabm_basicsr.deployment.onnx.traceable import check_traceable
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.sizes import mirrored

FORMAT = 1
TRACED_OPSET, OPSET = (
    20,
    21,
)  # INT4 came with 21, which changed none of the operators that are used here
EXAMPLE_SIZE = 64
INT4_RANGE = (-8, 7)


class _Deployed(nn.Module):
    """What the graph computes: the level of the image, and the image that the network makes at it."""

    def __init__(self, frozen: QuantizedNetwork, symmetric: bool) -> None:
        super().__init__()
        self.image_mapping, self.network, self.multiple = (
            frozen.image_mapping,
            frozen.network,
            frozen.size_multiple,
        )
        self.inputs = use_operators(frozen, symmetric)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        level = torch.full((), MIDDLE, dtype=torch.int64)
        if self.image_mapping is not None:
            level = self.image_mapping(image)[0].to(torch.int64) + MIDDLE
        for quantizer in self.inputs:
            quantizer.level = level
        return self._padded(image), level

    def _padded(self, image: Tensor) -> Tensor:
        if self.multiple == 1:
            return self.network(image)
        height, width = image.shape[2:]
        rows, columns = (mirrored(size, self.multiple) for size in (height, width))
        padded = image.index_select(2, rows).index_select(3, columns)
        output = self.network(padded)
        scale = int(output.shape[2]) // int(padded.shape[2])
        return output[..., : height * scale, : width * scale]


def save_onnx(
    net: QuantizedNetwork,
    path: str | os.PathLike,
    symmetric: bool = False,
    level: int | None = None,
) -> None:
    """Write a calibrated network as an ONNX file, atomically and only once it is checked.

    Args:
        net: The network, of any recipe with integer quantizers.
        path: The file to write.
        symmetric: Whether inputs are quantized without zero points, for engines that want it so (TensorRT): 8-bit
            layers lose up to a bit, others nothing.
        level: Write a graph for this image level (0, 1, 2) alone, without the choice and without INT4: all scales are
            constants then, which some engines want.

    Raises:
        AdaBMError: The network isn't calibrated, its recipe has no integers, its operations can't be expressed, or the
            file can't be written.
    """
    model = to_onnx(net, symmetric)
    if level is not None:
        model = fuse(at_level(model, level))
    _check(model)
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(sealed(model.SerializeToString()))


def to_onnx(net: QuantizedNetwork, symmetric: bool = False) -> onnx.ModelProto:
    """The adaptive graph of a calibrated network; arguments and errors as those of `save_onnx`."""
    if not net.config.arithmetic.integer:
        raise AdaBMError(
            f"recipe {net.config.recipe!r} quantizes as published, without an integer zero point: no runtime has such "
            "operators; quantize with recipe best, fast or static"
        )
    deployed = _Deployed(freeze(net).cpu(), symmetric).eval()
    size = -(-EXAMPLE_SIZE // deployed.multiple) * deployed.multiple + (
        deployed.multiple > 1
    )  # so that it is padded
    check_traceable(deployed, (1, net.in_channels, size, size), type(net.network).__name__)
    model = _trace(deployed, torch.rand(1, net.in_channels, size, size))
    _store_as_int4(model)
    description = {
        "format": FORMAT,
        "size_multiple": net.size_multiple,
        **(getattr(net, "description", None) or {}),
    }
    helper.set_model_props(model, {DESCRIPTION_KEY: json.dumps(description)})
    _check(model)
    return model


def _trace(deployed: _Deployed, example: Tensor) -> onnx.ModelProto:
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of the tracer: that shapes are constants where they are
            torch.onnx.export(
                deployed,
                (example,),
                buffer,
                dynamo=False,
                opset_version=TRACED_OPSET,
                input_names=[IMAGE],
                output_names=[OUTPUT, LEVEL],
                dynamic_axes={
                    IMAGE: {2: "height", 3: "width"},
                    OUTPUT: {2: "out_height", 3: "out_width"},
                },
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise AdaBMError(
            f"the network can't be written as ONNX: {str(error).splitlines()[0]}"
        ) from error
    model = onnx.load_from_string(buffer.getvalue())
    next(opset for opset in model.opset_import if not opset.domain).version = OPSET
    return model


def _store_as_int4(model: onnx.ModelProto) -> None:
    for index, tensor in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if (
            tensor.data_type == TensorProto.INT8
            and values.ndim
            and INT4_RANGE[0] <= values.min() <= values.max() <= INT4_RANGE[1]
        ):
            narrow = helper.make_tensor(
                tensor.name, TensorProto.INT4, values.shape, values.flatten()
            )
            model.graph.initializer[index].CopyFrom(narrow)


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise AdaBMError(
            f"the network can't be written as ONNX: {str(error).splitlines()[0]}"
        ) from error
