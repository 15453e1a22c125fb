"""What is in the file of a network: a checkpoint, a packed file, an ONNX file or one of ncnn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.deployment.load import NCNN_SUFFIX, ONNX_SUFFIX, PACKED_SUFFIX, load_network
from adabm_basicsr.deployment.ncnn.files import stored_layers as layers_of_ncnn
from adabm_basicsr.deployment.ncnn_network import read_description as read_description_of_ncnn
from adabm_basicsr.deployment.runtimes import import_runtime
from adabm_basicsr.errors import CheckpointError, not_found
from adabm_basicsr.files import is_file, is_folder
from adabm_basicsr.quantization.checkpoint import read_checkpoint, read_description
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.measures.cost import mean_weight_bits, size_bytes, weight_bits
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer

NETWORK = "quantized network"
GRAPH = "ONNX graph"
NCNN = "ncnn network"
PLAIN = "plain checkpoint"
SHOWN_OPTIONS = ("recipe", "w_bits", "a_bits", "fully_quantized", "size_multiple", "engine")
SHOWN_OF_GRAPHS = ("engine", "form", "level", "symmetric", "arithmetic")


@dataclass
class Contents:
    """What a file holds, in JSON's types.

    Attributes:
        file: Its path.
        bytes: Its size.
        kind: `NETWORK`, `GRAPH`, `NCNN` or `PLAIN`.
        facts: What holds for all of it.
        rows: A layer or tensor each; which keys they have depends on ``kind``.
    """

    file: str
    bytes: int
    kind: str
    facts: dict[str, Any]
    rows: list[dict[str, Any]]


def inspect(path: Path, custom_imports: Sequence[str] = ()) -> Contents:
    """What a file holds.

    Args:
        path: The file.
        custom_imports: Modules that register an in-house architecture; importing them runs their
            code.

    Raises:
        AdaBMError: The file is missing or can't be read.
    """
    if is_folder(path):
        raise CheckpointError(f"{path} is a folder: name a file")
    if not is_file(path):
        raise not_found("", path, CheckpointError)
    if path.suffix == ONNX_SUFFIX:
        return _inspect_onnx(path)
    if path.suffix == NCNN_SUFFIX:
        return _inspect_ncnn(path)
    description = read_description(path) or {}
    if path.suffix == PACKED_SUFFIX or "network" in description:
        return _inspect_network(path, custom_imports)
    return _inspect_plain(path)


def _contents(path: Path, kind: str, facts: dict[str, Any], rows: list[dict[str, Any]]) -> Contents:
    return Contents(str(path), path.stat().st_size, kind, facts, rows)


def _inspect_network(path: Path, custom_imports: Sequence[str]) -> Contents:
    net = load_network(path, custom_imports)
    assert isinstance(net, AdaBMNetwork)  # as files other than ONNX describe it
    facts = describe(net.description)
    facts["mean weight bits"] = round(mean_weight_bits(net), 3)
    facts["bytes"] = size_bytes(net)
    facts["float_bytes"] = net.full_precision_bytes()
    if net.image_mapping is not None:
        lower = round(net.image_mapping.lower.item(), 3)
        upper = round(net.image_mapping.upper.item(), 3)
        facts["image thresholds"] = [lower, upper]
    if net.full_precision_above is not None:
        facts["full precision above complexity"] = round(net.full_precision_above.item(), 3)
    return _contents(path, NETWORK, facts, _layer_rows(net))


def _layer_rows(net: QuantizedNetwork) -> list[dict[str, Any]]:
    """A row for each input of each layer; the inputs of a product share its MACs."""
    structure = net.structure
    total = sum(structure.macs.values()) + sum(structure.other_macs.values())
    rows = []
    for name, layer in net.layers().items():
        weight = getattr(layer, "weight", None)
        inputs = layer.inputs(name)
        for input_name, quantizer in inputs.items():
            lower, upper = _clipping_range(quantizer)
            row = {
                "name": input_name,
                "role": structure.roles[name].value,
                "w_bits": weight_bits(layer),
                "a_bits": _bits(net, quantizer),
                "lower": lower,
                "upper": upper,
                "weights": 0 if weight is None else weight.numel(),
                "macs": structure.macs[name] / total / len(inputs),
            }
            rows.append(row)
    return rows


def _clipping_range(quantizer: nn.Module) -> tuple[float | None, float | None]:
    """Ends of a clipping range to four digits; None for an input in full precision."""
    if not isinstance(quantizer, ActivationQuantizer):
        return None, None
    lower, upper = quantizer.clipping_range
    return float(f"{lower:.4g}"), float(f"{upper:.4g}")


def _bits(net: QuantizedNetwork, quantizer: nn.Module) -> str:
    """Bits of an input: from those of the simplest images to those of the most complex."""
    if not isinstance(quantizer, ActivationQuantizer):
        return str(FLOAT_BITS)
    of_layer = round(quantizer.bits_of_layer().item())
    fewer, more = 0, 0
    if quantizer.adaptive and net.image_mapping is not None:
        fewer, more = quantizer.image_bits
    lowest, highest = quantizer.bit_range
    low = min(max(of_layer + fewer, lowest), highest)
    high = min(max(of_layer + more, lowest), highest)
    return str(low) if low == high else f"{low}..{high}"


def _inspect_plain(path: Path) -> Contents:
    rows = []
    for name, tensor in read_checkpoint(path).items():
        shape = " x ".join(str(size) for size in tensor.shape) or "scalar"
        kind = str(tensor.dtype).removeprefix("torch.")
        rows.append({"name": name, "shape": shape, "type": kind})
    return _contents(path, PLAIN, {"tensors": len(rows)}, rows)


def _inspect_onnx(path: Path) -> Contents:
    import_runtime("onnx")
    # Imports onnx, which not everyone has.
    from adabm_basicsr.deployment.onnx.reading import opset_of, read_file, stored_layers

    model, description, _ = read_file(path)
    facts = describe(description) if description else {}
    for key in SHOWN_OF_GRAPHS:
        if description and description.get(key) is not None:
            facts[key] = description[key]
    facts["nodes"] = len(model.graph.node)
    facts["opset"] = opset_of(model)
    rows = []
    for layer in stored_layers(model):
        row = {
            "name": layer.name,
            "operator": layer.operator,
            "weights": " x ".join(str(size) for size in layer.shape),
            "type": layer.type,
        }
        rows.append(row)
    return _contents(path, GRAPH, facts, rows)


def _inspect_ncnn(path: Path) -> Contents:
    described = read_description_of_ncnn(path)
    facts = describe(described.description) if described.description else {}
    facts["engine"] = described.engine
    facts["input"] = f"{described.input} of {described.in_channels} channels"
    facts["output"] = described.output
    facts["pixels"] = described.pixels
    facts["size_multiple"] = described.size_multiple
    rows = []
    for layer in layers_of_ncnn(path.read_text(encoding="utf-8")):
        row = {
            "name": layer.name,
            "operator": layer.kind,
            "weights": str(layer.weights),
            "type": layer.type,
        }
        rows.append(row)
    return _contents(path, NCNN, facts, rows)


def describe(description: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a network that matter most, from what a file says of how it was built."""
    network = _section(description, "network")
    options = _section(description, "options")
    facts = {"network": network.get("type")}
    for key in SHOWN_OPTIONS:
        facts[key] = options.get(key)
    facts["written by"] = f"adabm-basicsr {description.get('version')}"
    return facts


def _section(description: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a description; empty where the file has something else in its place."""
    section = description.get(key)
    return section if isinstance(section, Mapping) else {}
