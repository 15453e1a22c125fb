"""``adabm-basicsr upscale``: super-resolve images with a quantized network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.commands.flags import add_custom_imports, add_max_pixels, make_parser
from adabm_basicsr.data.headers import check_max_pixels
from adabm_basicsr.deployment.runtimes import DEFAULT_RUNTIME, RUNTIMES
from adabm_basicsr.deployment.tiles import DEFAULT_OVERLAP, check_tiles
from adabm_basicsr.deployment.upscale import (
    DEFAULT_TILE,
    Outcome,
    Tiling,
    load_upscaler,
    own_share,
    plan_outputs,
    upscale_files,
)
from adabm_basicsr.errors import OptionError, check_positive
from adabm_basicsr.terminal import add_output_flags


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parse(argv)
    jobs = own_share(plan_outputs(args.input, args.out, args.ext))
    network = load_upscaler(
        args.model, args.custom_imports, args.runtime, args.threads, args.device
    )
    tiling = Tiling(args.tile, args.tile_overlap, args.batch)
    outcome = upscale_files(network, jobs, tiling, args.max_pixels, args.overwrite, args.quiet)
    if args.json:
        _print_json(outcome)
    elif not args.quiet:
        _print_summary(outcome)
    outcome.check()


def _print_json(outcome: Outcome) -> None:
    failed = {str(source): reason for source, reason in outcome.failed.items()}
    figures = {
        "upscaled": outcome.upscaled,
        "existed": outcome.existed,
        "failed": failed,
        "pixels": outcome.pixels,
        "seconds": outcome.seconds,
    }
    print(json.dumps(figures))


def _print_summary(outcome: Outcome) -> None:
    existed = f"existed already: {outcome.existed}"
    if outcome.existed:
        existed += " (--overwrite makes them anew)"
    print(
        f"images upscaled: {outcome.upscaled}, {outcome.speed}; {existed}; "
        f"failed: {len(outcome.failed)}"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("upscale")
    parser.add_argument(
        "-m",
        "--model",
        type=Path,
        required=True,
        help=".onnx, .param, packed file or checkpoint (.pth)",
    )
    parser.add_argument(
        "-i",
        "--input",
        nargs="+",
        required=True,
        help="images, folders or patterns such as '*.png'",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="folder to write to, or a file for a single image",
    )
    parser.add_argument(
        "--ext", help="format of the results, such as png (default: that of each image)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make results anew that exist already"
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=DEFAULT_TILE,
        help="largest tile in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--tile-overlap",
        type=int,
        default=DEFAULT_OVERLAP,
        help="pixels that tiles share (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="tiles that are computed at once (default: 1)"
    )
    parser.add_argument(
        "--runtime",
        choices=sorted(RUNTIMES),
        help=f"what runs .onnx files (default: {DEFAULT_RUNTIME})",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="of the runtime (default: its own choice)"
    )
    parser.add_argument(
        "--device", help="what runs other files: cpu, cuda, ... (default: cuda where there is one)"
    )
    add_output_flags(parser)
    add_max_pixels(parser)
    add_custom_imports(parser)
    args = parser.parse_args(argv)
    check_tiles("upscale", args.tile, args.tile_overlap)
    check_max_pixels("--max-pixels", args.max_pixels)
    check_positive("--batch", args.batch)
    if args.threads < 0:
        raise OptionError(
            f"--threads: {args.threads} is not a number of threads, "
            f"or 0 for the runtime's own choice"
        )
    return args
