"""``adabm-basicsr inspect``: what is in a checkpoint, a packed file or an ONNX file."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from adabm_basicsr.commands.export import add_custom_imports
from adabm_basicsr.deployment.load import ONNX_SUFFIX, PACKED_SUFFIX, load_network
from adabm_basicsr.errors import AdaBMError, not_found
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY, read_checkpoint, read_description
from adabm_basicsr.quantization.measures.cost import weight_bits
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.report.tables import Table, cell
from adabm_basicsr.runs.facts import describe_size, mean_weight_bits
from adabm_basicsr.terminal import add_output_flags, json_alone

COLUMNS = {
    "quantized network": {
        "layer": "name",
        "role": "role",
        "w bits": "w_bits",
        "a bits": "a_bits",
        "lower": "lower",
    }
    | {"upper": "upper", "weights": "weights", "MACs": "macs"},
    "ONNX graph": {"layer": "name", "operator": "operator", "weights": "weights", "type": "type"},
    "plain checkpoint": {"tensor": "name", "shape": "shape", "type": "type"},
}
ONNX_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr inspect``."""
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr inspect", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="checkpoint (.pth), packed file or ONNX file"
    )
    add_custom_imports(parser)
    add_output_flags(parser)
    args = parser.parse_args(argv)
    with json_alone(args.json):
        found = inspect(args.model, args.custom_imports)
    if args.json:
        print(json.dumps(found, indent=1))
    elif not args.quiet:  # then the exit code alone tells whether the file can be read
        print(show(found))


def inspect(path: Path, custom_imports: Sequence[str] = ()) -> dict:
    """What a file holds: ``kind``, a line of ``facts`` and a list of ``rows``.

    Args:
        path: The file.
        custom_imports: Modules that register an in-house architecture; importing them runs their code.

    Raises:
        AdaBMError: The file is missing or can't be read.
    """
    if os.path.isdir(path):
        raise AdaBMError(f"{path} is a folder: name a file")
    if not os.path.isfile(path):
        raise not_found("", path)
    if path.suffix == ONNX_SUFFIX:
        return {"file": str(path), "bytes": path.stat().st_size, **_inspect_onnx(path)}
    if path.suffix == PACKED_SUFFIX or read_description(path) is not None:
        found = _inspect_network(load_network(path, custom_imports))
    else:
        found = _inspect_plain(path)
    return {"file": str(path), "bytes": path.stat().st_size, **found}


def _inspect_network(net: QuantizedNetwork) -> dict:
    total = sum(net.structure.macs.values()) + sum(net.structure.other_macs.values())
    rows = []
    for name, layer in net.layers().items():
        inputs, weight = layer.inputs(name), getattr(layer, "weight", None)
        for row_name, quantizer in inputs.items():
            lower, upper = (
                _rounded(end) for end in getattr(quantizer, "clipping_range", (None, None))
            )
            row = {
                "name": row_name,
                "role": net.structure.roles[name].value,
                "w_bits": weight_bits(layer),
            }
            row |= {
                "a_bits": _bits(net, quantizer),
                "lower": lower,
                "upper": upper,
                "weights": weight.numel() if weight is not None else 0,
            }
            rows.append({**row, "macs": net.structure.macs[name] / total / len(inputs)})
    mapping = net.image_mapping
    facts = describe(net.description) | {
        "mean weight bits": round(mean_weight_bits(net), 3),
        **describe_size(net),
    }
    if mapping is not None:
        facts["image thresholds"] = [round(mapping.lower.item(), 3), round(mapping.upper.item(), 3)]
    return {"kind": "quantized network", "facts": facts, "rows": rows}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _bits(net: QuantizedNetwork, quantizer: object) -> str:
    """Bits of an input: from those of the simplest images to those of the most complex."""
    if not hasattr(quantizer, "bits_of_layer"):
        return "32"
    of_layer = round(quantizer.bits_of_layer().item())
    reach = quantizer.image_bits if quantizer.adaptive and net.image_mapping is not None else (0, 0)
    low, high = (
        min(max(of_layer + more, quantizer.bit_range[0]), quantizer.bit_range[1]) for more in reach
    )
    return str(low) if low == high else f"{low}..{high}"


def _inspect_plain(path: Path) -> dict:
    rows = [
        {
            "name": name,
            "shape": " x ".join(map(str, tensor.shape)) or "scalar",
            "type": str(tensor.dtype)[6:],
        }
        for name, tensor in read_checkpoint(path).items()
    ]
    return {"kind": "plain checkpoint", "facts": {"tensors": len(rows)}, "rows": rows}


def _inspect_onnx(path: Path) -> dict:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise AdaBMError("reading ONNX files needs the package onnx: pip install onnx") from error
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise AdaBMError(
            f"{path} cannot be read (corrupt, or no ONNX file): {str(error).splitlines()[0]}"
        ) from error
    told = {entry.key: entry.value for entry in model.metadata_props}.get(DESCRIPTION_KEY)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    integers = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    rows = []
    for node in model.graph.node:
        weight = (
            stored.get(integers.get(node.input[1], node.input[1]))
            if node.op_type in ONNX_LAYERS
            else None
        )
        if weight is not None:
            kind = onnx.TensorProto.DataType.Name(weight.data_type).lower()
            size = " x ".join(map(str, weight.dims))
            rows.append(
                {
                    "name": node.name or node.output[0],
                    "operator": node.op_type,
                    "weights": size,
                    "type": kind,
                }
            )
    facts = describe(json.loads(told)) if told else {}
    facts |= {"nodes": len(model.graph.node), "opset": model.opset_import[0].version}
    return {"kind": "ONNX graph", "facts": facts, "rows": rows}


def describe(description: Mapping) -> dict[str, object]:
    """The options of a network that matter most, from what a file says of how it was built."""
    options, network = description.get("options") or {}, description.get("network") or {}
    keys = ("recipe", "w_bits", "a_bits", "fully_quantized", "size_multiple")
    told = {"network": network.get("type"), **{key: options.get(key) for key in keys}}
    return told | {"written by": f"adabm-basicsr {description.get('version')}"}


def show(found: Mapping) -> str:
    """The table for the terminal, under a line on the file."""
    facts = ", ".join(
        f"{key} {value}" for key, value in found["facts"].items() if value is not None
    )
    columns = COLUMNS[found["kind"]]
    writers = {"macs": lambda share: f"{100 * share:.1f} %"}
    rows = [
        [cell(found, ("rows", i, key), writers.get(key, str)) for key in columns.values()]
        for i in range(len(found["rows"]))
    ]
    table = Table(found["kind"], list(columns), rows)
    return f"{found['file']}: {found['kind']}, {found['bytes'] / 1e6:.3f} MB\n{facts}\n\n{table.text()}"
