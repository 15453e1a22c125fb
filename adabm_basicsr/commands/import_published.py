"""``adabm-basicsr import``: quantized checkpoints of the published code become ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.archs.published import import_published, write_imported
from adabm_basicsr.commands.flags import make_parser
from adabm_basicsr.errors import OptionError


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("import")
    parser.add_argument("published", type=Path, help="quantized checkpoint of the published code")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT.pth", help="checkpoint to write"
    )
    parser.add_argument(
        "--w-bits", type=int, default=4, help="bits of its weights, 2..8 (default: 4)"
    )
    parser.add_argument(
        "--a-bits", type=int, default=4, help="base bits of its activations, 3..8 (default: 4)"
    )
    parser.add_argument(
        "--res-scale", type=float, default=1.0, help="factor of EDSR's residuals (default: 1)"
    )
    args = parser.parse_args(argv)
    if args.out.suffix != ".pth" or args.out.resolve() == args.published.resolve():
        raise OptionError(
            f"--out: {args.out} must be another file than the published one, and end in .pth"
        )
    imported = import_published(args.published, args.w_bits, args.a_bits, args.res_scale)
    sections = write_imported(imported, args.out)
    print(f"{args.published}: {imported} (the file doesn't hold its bits)")
    print(
        f"written: {args.out}, and {sections} with its network_g and path for an option file "
        f"(adabm-basicsr test)"
    )
