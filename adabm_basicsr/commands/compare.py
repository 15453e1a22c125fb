"""``adabm-basicsr compare``: runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.commands.flags import make_parser
from adabm_basicsr.report.build import print_figures
from adabm_basicsr.report.compare import compare, write
from adabm_basicsr.report.tables import runs_table
from adabm_basicsr.terminal import add_output_flags


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("compare")
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of runs, or folders that hold some",
    )
    parser.add_argument(
        "-o", "--out", type=Path, help="folder to write compare.html, .json, .md and the plot to"
    )
    add_output_flags(parser)
    args = parser.parse_args(argv)
    figures = compare(args.folders)
    if args.out:
        write(figures, args.out)
    if args.json:
        print_figures(figures)
    elif not args.quiet:
        print(runs_table(figures).text())
