"""``adabm-basicsr export``: a quantized checkpoint becomes a file to deploy."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.commands.flags import add_custom_imports, make_parser
from adabm_basicsr.deployment.load import ONNX_SUFFIX, PACKED_SUFFIX, load_network
from adabm_basicsr.deployment.packed import save_packed
from adabm_basicsr.deployment.runtimes import import_runtime
from adabm_basicsr.errors import ExportError, OptionError
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.terminal import add_output_flags, bars

SUFFIXES = {"packed": PACKED_SUFFIX, "onnx": ONNX_SUFFIX}
IMAGE_CLASSES = (0, 1, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parse(argv)
    net = load_network(args.model, args.custom_imports)
    if not isinstance(net, QuantizedNetwork):
        raise ExportError(
            f"--model: {args.model} is exported already; give the checkpoint or the packed file"
        )
    with bars(shown=not args.quiet):
        _save(net, args)
    size = args.out.stat().st_size
    full = net.full_precision_bytes()
    if args.json:
        figures = {"file": str(args.out), "bytes": size, "full_precision_bytes": full}
        print(json.dumps(figures))
    elif not args.quiet:
        print(
            f"written: {args.out}, {size / 1e6:.3f} MB: "
            f"{size / full:.1%} of {full / 1e6:.3f} MB of float32 weights"
        )


def _save(net: QuantizedNetwork, args: argparse.Namespace) -> None:
    if args.format == "packed":
        save_packed(net, args.out)
        return
    import_runtime("onnx")
    # Imports onnx, which not everyone has.
    from adabm_basicsr.deployment.onnx.export import save_onnx

    save_onnx(net, args.out, args.symmetric, args.level)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("export")
    parser.add_argument(
        "-m", "--model", type=Path, required=True, help="quantized checkpoint (.pth) or packed file"
    )
    parser.add_argument(
        "--format",
        choices=sorted(SUFFIXES),
        help="kind of file (default: as --out ends, or packed)",
    )
    parser.add_argument(
        "-o", "--out", type=Path, help="file to write (default: the model's name, another ending)"
    )
    parser.add_argument(
        "--symmetric",
        action="store_true",
        help="onnx: no zero points, for engines such as TensorRT",
    )
    parser.add_argument(
        "--level",
        type=int,
        choices=IMAGE_CLASSES,
        help="onnx: for images of one class alone (0 simple, 1 middle, 2 complex), all scales "
        "being constants",
    )
    add_output_flags(parser)
    add_custom_imports(parser)
    args = parser.parse_args(argv)
    _choose_file(args)
    return args


def _choose_file(args: argparse.Namespace) -> None:
    """Fill in the format and the file to write, where they are left out, and check them."""
    if args.format is None:
        is_onnx = args.out is not None and args.out.suffix == ONNX_SUFFIX
        args.format = "onnx" if is_onnx else "packed"
    suffix = SUFFIXES[args.format]
    if args.out is None:
        args.out = args.model.with_suffix(suffix)
    if args.out.suffix != suffix:
        raise OptionError(f"--out: {args.out} must end in {suffix} with --format {args.format}")
    if args.out.resolve() == args.model.resolve():
        raise OptionError(f"--out: {args.out} is the model itself")
    if args.format != "onnx" and (args.symmetric or args.level is not None):
        raise OptionError("--symmetric and --level are for --format onnx")
