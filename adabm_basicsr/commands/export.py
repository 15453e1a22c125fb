"""``adabm-basicsr export``: a quantized checkpoint becomes a file to deploy."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.commands.flags import add_custom_imports, make_parser
from adabm_basicsr.deployment.engines import EXPORTS, describe_full_precision, programs, save_for
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
        lines = _save(net, args)
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
        for line in lines:
            print(line)


def _save(net: QuantizedNetwork, args: argparse.Namespace) -> list[str]:
    """Write the file; lines on what is in it, beside its size."""
    if args.engine is not None:
        return save_for(args.engine, net, args.out, args.tune)
    if args.format == "packed":
        save_packed(net, args.out)
        return describe_full_precision(net)
    import_runtime("onnx")
    # Imports onnx, which not everyone has.
    from adabm_basicsr.deployment.onnx.export import save_onnx

    save_onnx(net, args.out, args.symmetric, args.level)
    return describe_full_precision(net, args.level)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("export")
    parser.add_argument(
        "-m", "--model", type=Path, required=True, help="quantized checkpoint (.pth) or packed file"
    )
    parser.add_argument(
        "--for",
        dest="engine",
        metavar="ENGINE",
        help=f"what will run the file: {programs()}. It must be what the network was quantized for "
        "(network_g: engine); docs/engines.md says which file is for which program",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="with --for openvino or openvino_uint8: try the forms of the file on this machine, "
        "and write the fastest",
    )
    parser.add_argument(
        "--format",
        choices=sorted(SUFFIXES),
        help="kind of file, without --for: packed, smallest, which PyTorch runs, or onnx, as --for "
        "openvino (default: onnx with --level or --symmetric, else as --out ends, or packed)",
    )
    parser.add_argument(
        "-o", "--out", type=Path, help="file to write (default: the model's name, another ending)"
    )
    parser.add_argument(
        "--symmetric",
        action="store_true",
        help="onnx: inputs without zero points, whatever the network was quantized for; its 8-bit "
        "layers lose up to a bit",
    )
    parser.add_argument(
        "--level",
        type=int,
        choices=IMAGE_CLASSES,
        help="onnx: for images of one class alone (0 simple, 1 middle, 2 complex), with constant "
        "scales",
    )
    add_output_flags(parser)
    add_custom_imports(parser)
    args = parser.parse_args(argv)
    _choose_file(args)
    return args


def _choose_file(args: argparse.Namespace) -> None:
    """Fill in the format and the file to write, where they are left out, and check them."""
    if args.tune and args.engine is None:
        raise OptionError("--tune: it is for files for OpenVINO; add --for openvino")
    of_onnx = args.symmetric or args.level is not None
    if args.engine is not None:
        if args.engine not in EXPORTS:
            raise OptionError(f"--for: {args.engine!r} is no engine; valid: {programs()}")
        if args.format is not None or of_onnx:
            raise OptionError("--for takes no --format, --symmetric or --level: it chooses them")
        suffix, why = EXPORTS[args.engine].suffix, f"--for {args.engine}"
    else:
        args.format = args.format or _format(args.out, of_onnx)
        if args.format != "onnx" and of_onnx:
            raise OptionError("--symmetric and --level are for --format onnx")
        suffix, why = SUFFIXES[args.format], f"--format {args.format}"
    if args.out is None:
        args.out = args.model.with_suffix(suffix)
    if args.out.suffix != suffix:
        raise OptionError(f"--out: {args.out} must end in {suffix} with {why}")
    if args.out.resolve() == args.model.resolve():
        raise OptionError(f"--out: {args.out} is the model itself")


def _format(out: Path | None, of_onnx: bool) -> str:
    """The format that was meant, where none was given.

    Raises:
        OptionError: The file to write ends otherwise than any of them.
    """
    if of_onnx:
        return "onnx"
    if out is None:
        return "packed"
    for name, suffix in SUFFIXES.items():
        if out.suffix == suffix:
            return name
    for engine, export in EXPORTS.items():
        if out.suffix == export.suffix:
            raise OptionError(f"--out: {out} is a file for {engine}: add --for {engine}")
    endings = [f"{suffix} ({name})" for name, suffix in SUFFIXES.items()]
    raise OptionError(f"--out: {out} ends in none of {', '.join(endings)}")
