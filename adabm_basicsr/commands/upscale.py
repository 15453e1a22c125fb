"""``adabm-basicsr upscale``: super-resolve images or clips with a quantized network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.commands.flags import add_custom_imports, add_max_pixels, make_parser
from adabm_basicsr.data.headers import check_max_pixels
from adabm_basicsr.deployment.chunks import (
    DEFAULT_CHUNK,
    DEFAULT_CHUNK_OVERLAP,
    Chunking,
)
from adabm_basicsr.deployment.runtimes import DEFAULT_RUNTIME, RUNTIMES
from adabm_basicsr.deployment.tiles import DEFAULT_OVERLAP, check_tiles
from adabm_basicsr.deployment.upscale import (
    DEFAULT_TILE,
    Outcome,
    Tiling,
    Upscaler,
    load_upscaler,
    own_share,
    plan_clips,
    plan_outputs,
    upscale_clips,
    upscale_files,
)
from adabm_basicsr.errors import OptionError, check_positive
from adabm_basicsr.quantization.structure.clips import Clips
from adabm_basicsr.terminal import add_output_flags

DEFAULT_BATCH = 1
# Flags of one kind of network; None where they aren't given.
OF_IMAGES = ("ext", "tile", "tile_overlap", "batch")
OF_CLIPS = ("chunk", "chunk_overlap")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parse(argv)
    network = load_upscaler(
        args.model, args.custom_imports, args.runtime, args.threads, args.device
    )
    if network.clips is None:
        outcome = _upscale_images(network, args)
    else:
        outcome = _upscale_clips(network, network.clips, args)
    if args.json:
        _print_json(outcome)
    elif not args.quiet:
        _print_summary(outcome)
    outcome.check()


def _upscale_images(network: Upscaler, args: argparse.Namespace) -> Outcome:
    _check_absent(args, OF_CLIPS, "it is for clips, and the network takes images")
    jobs = own_share(plan_outputs(args.input, args.out, args.ext))
    tiling = Tiling(
        _or_default(args.tile, DEFAULT_TILE),
        _or_default(args.tile_overlap, DEFAULT_OVERLAP),
        _or_default(args.batch, DEFAULT_BATCH),
    )
    return upscale_files(network, jobs, tiling, args.max_pixels, args.overwrite, args.quiet)


def _upscale_clips(network: Upscaler, clips: Clips, args: argparse.Namespace) -> Outcome:
    why = "the network takes clips, which run in chunks of whole frames and become PNG files"
    _check_absent(args, OF_IMAGES, why)
    if clips.window is not None:
        why = f"the network takes windows of {clips.window} frames, which overlap by themselves"
        _check_absent(args, ("chunk_overlap",), why)
    chunking = Chunking(
        _or_default(args.chunk, DEFAULT_CHUNK),
        _or_default(args.chunk_overlap, DEFAULT_CHUNK_OVERLAP),
        clips.window,
    )
    jobs = own_share(plan_clips(args.input, args.out))
    return upscale_clips(network, jobs, chunking, args.max_pixels, args.overwrite, args.quiet)


def _check_absent(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Reject flags that the network has no use for."""
    for name in names:
        if getattr(args, name) is not None:
            raise OptionError(f"--{name.replace('_', '-')}: {why}")


def _or_default(given: int | None, default: int) -> int:
    return default if given is None else given


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
        f"{outcome.unit} upscaled: {outcome.upscaled}, {outcome.speed}; {existed}; "
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
        help="images, folders or patterns such as '*.png'; of networks that take clips: folders "
        "of frames, folders of such, or video files",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="folder to write to, or a file for a single image; clips get a folder each in it, of "
        "frames named by eight digits",
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
        help=f"largest tile of an image in pixels (default: {DEFAULT_TILE})",
    )
    parser.add_argument(
        "--tile-overlap",
        type=int,
        help=f"pixels that tiles share (default: {DEFAULT_OVERLAP})",
    )
    parser.add_argument(
        "--batch",
        type=int,
        help=f"tiles that are computed at once (default: {DEFAULT_BATCH})",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="FRAMES",
        help="frames of a clip that are made at once: more take more memory, and less time in all "
        f"(default: {DEFAULT_CHUNK})",
    )
    parser.add_argument(
        "--chunk-overlap",
        type=int,
        metavar="FRAMES",
        help="frames before and after a chunk that run with it, for what a recurrent network "
        f"carries from frame to frame (default: {DEFAULT_CHUNK_OVERLAP})",
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
    check_tiles(
        "upscale",
        _or_default(args.tile, DEFAULT_TILE),
        _or_default(args.tile_overlap, DEFAULT_OVERLAP),
    )
    check_max_pixels("--max-pixels", args.max_pixels)
    for flag, count in (
        ("--batch", args.batch),
        ("--chunk", args.chunk),
        ("--chunk-overlap", args.chunk_overlap),
    ):
        if count is not None:
            check_positive(flag, count)
    if args.threads < 0:
        raise OptionError(
            f"--threads: {args.threads} is not a number of threads, "
            f"or 0 for the runtime's own choice"
        )
    return args
