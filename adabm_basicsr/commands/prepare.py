"""``adabm-basicsr prepare``: low-resolution images by BasicSR's MATLAB-style bicubic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.commands.flags import add_max_pixels, make_parser
from adabm_basicsr.data.prepare import prepare


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("prepare")
    parser.add_argument("--hr", type=Path, required=True, help="folder of high-resolution images")
    parser.add_argument("--scale", type=int, required=True, choices=range(1, 9), metavar="1..8")
    parser.add_argument("--out", type=Path, required=True, help="new folder, or NAME.lmdb")
    parser.add_argument(
        "--mod", type=Path, help="new folder for the HR images, cropped to multiples of the scale"
    )
    add_max_pixels(parser)
    args = parser.parse_args(argv)
    written = prepare(args.hr, args.scale, args.out, args.mod, args.max_pixels)
    print(f"{len(written)} images of scale 1/{args.scale} in {args.out}")
