"""``adabm-basicsr export``: a quantized checkpoint becomes a file to deploy."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.deployment.load import ONNX_SUFFIX, PACKED_SUFFIX, load_network
from adabm_basicsr.deployment.runtimes import import_runtime
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.terminal import add_output_flags, bars

SUFFIXES = {"packed": PACKED_SUFFIX, "onnx": ONNX_SUFFIX}
LEVELS = (0, 1, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr export``."""
    args = _parse(argv)
    args.format = args.format or _format_of(args.out)
    suffix = SUFFIXES[args.format]
    out = args.out or args.model.with_suffix(suffix)
    if out.suffix != suffix:
        raise AdaBMError(f"--out: {out} must end in {suffix} with --format {args.format}")
    if out.resolve() == args.model.resolve():
        raise AdaBMError(f"--out: {out} is the model itself")
    if args.format != "onnx" and (args.symmetric or args.level is not None):
        raise AdaBMError("--symmetric and --level are for --format onnx")
    net = load_network(args.model, args.custom_imports)
    if not isinstance(net, QuantizedNetwork):
        raise AdaBMError(
            f"--model: {args.model} is exported already; give the checkpoint or the packed file"
        )
    with bars(shown=not args.quiet):
        _save(net, out, args)
    size, full = out.stat().st_size, net.full_precision_bytes()
    if args.json:
        print(json.dumps({"file": str(out), "bytes": size, "full_precision_bytes": full}))
    elif not args.quiet:
        print(
            f"written: {out}, {size / 1e6:.3f} MB: {size / full:.1%} of {full / 1e6:.3f} MB of float32 weights"
        )


def _format_of(out: Path | None) -> str:
    return "onnx" if out is not None and out.suffix == ONNX_SUFFIX else "packed"


def _save(net: QuantizedNetwork, out: Path, args: argparse.Namespace) -> None:
    if args.format == "packed":
        from adabm_basicsr.deployment.packed import save_packed

        return save_packed(net, out)
    import_runtime("onnx")
    from adabm_basicsr.deployment.onnx.export import save_onnx

    return save_onnx(net, out, args.symmetric, args.level)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr export", description=__doc__, allow_abbrev=False
    )
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
        choices=LEVELS,
        help="onnx: for images of one complexity alone, all scales being constants",
    )
    add_output_flags(parser)
    add_custom_imports(parser)
    return parser.parse_args(argv)


def add_custom_imports(parser: argparse.ArgumentParser) -> None:
    """The flag that names modules of in-house architectures."""
    parser.add_argument(
        "--custom-imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules that register an in-house architecture; this runs their code",
    )
