"""``adabm-basicsr export``: a quantized checkpoint becomes a file to deploy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.deployment.load import PACKED_SUFFIX, load_network
from adabm_basicsr.errors import AdaBMError

SUFFIXES = {"packed": PACKED_SUFFIX}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr export``."""
    args = _parse(argv)
    suffix = SUFFIXES[args.format]
    out = args.out or args.model.with_suffix(suffix)
    if out.suffix != suffix:
        raise AdaBMError(f"--out: {out} must end in {suffix}")
    if out.resolve() == args.model.resolve():
        raise AdaBMError(f"--out: {out} is the model itself")
    net = load_network(args.model, args.custom_imports)
    from adabm_basicsr.deployment.packed import save_packed

    save_packed(net, out)
    full = sum(parameter.numel() * parameter.element_size() for parameter in net.base_parameters())
    size = out.stat().st_size
    print(f"written: {out}, {size / 1e6:.3f} MB: {size / full:.1%} of {full / 1e6:.3f} MB of float32 weights")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="adabm-basicsr export", description=__doc__)
    parser.add_argument("-m", "--model", type=Path, required=True, help="quantized checkpoint (.pth) or packed file")
    parser.add_argument("--format", choices=sorted(SUFFIXES), default="packed", help="kind of file (default: packed)")
    parser.add_argument("-o", "--out", type=Path, help="file to write (default: the model's name, another ending)")
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
