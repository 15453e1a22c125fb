"""``adabm-basicsr prepare``: low-resolution images by BasicSR's MATLAB-style bicubic."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.commands.flags import add_max_pixels, make_parser
from adabm_basicsr.data.frames import ALL_FRAMES, parse_frames
from adabm_basicsr.data.prepare import prepare
from adabm_basicsr.data.prepare_clips import prepare_clips
from adabm_basicsr.errors import OptionError, check_positive, counted


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("prepare")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--hr", type=Path, help="folder of high-resolution images")
    source.add_argument(
        "--clips",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="video files, folders of frames, or folders of such; each becomes a folder of frames",
    )
    parser.add_argument("--scale", type=int, required=True, choices=range(1, 9), metavar="1..8")
    parser.add_argument(
        "--out", type=Path, help="new folder, or NAME.lmdb, for the LR images (clips: or --mod)"
    )
    parser.add_argument(
        "--mod", type=Path, help="new folder for the HR images, cropped to multiples of the scale"
    )
    parser.add_argument(
        "--frames", metavar="FIRST-LAST", help="frames of each clip to take, from 0 (default: all)"
    )
    parser.add_argument(
        "--shrink",
        type=int,
        metavar="N",
        help="make the frames of clips N times smaller first (default: as they are)",
    )
    add_max_pixels(parser)
    args = parser.parse_args(argv)
    if args.hr is None:
        _prepare_clips(args)
        return
    for flag, value in (("--frames", args.frames), ("--shrink", args.shrink)):
        if value is not None:
            raise OptionError(f"{flag}: only with --clips")
    if args.out is None:
        raise OptionError("--out is missing")
    written = prepare(args.hr, args.scale, args.out, args.mod, args.max_pixels)
    print(f"{counted(len(written), 'images')} of scale 1/{args.scale} in {args.out}")


def _prepare_clips(args: argparse.Namespace) -> None:
    frames = ALL_FRAMES
    if args.frames is not None:
        frames = parse_frames("--frames", args.frames)
    shrink = 1
    if args.shrink is not None:
        shrink = check_positive("--shrink", args.shrink)
    counts = prepare_clips(
        args.clips, args.scale, args.out, args.mod, frames, shrink, args.max_pixels
    )
    clips = counted(len(counts), "clips")
    written = f"{clips}, {counted(sum(counts.values()), 'frames')}"
    if args.out is not None:
        print(f"{written} of scale 1/{args.scale} in {args.out}")
    if args.mod is not None:
        print(f"{written} in {args.mod}")
