"""``adabm-basicsr demo``: the whole way on a real network, from photographs to a report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.commands.flags import make_parser
from adabm_basicsr.demo.run import run_demo
from adabm_basicsr.report.build import print_figures
from adabm_basicsr.report.tables import sets_table
from adabm_basicsr.terminal import add_output_flags, json_alone


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("demo")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("adabm_demo"),
        help="folder to write to (default: ./adabm_demo)",
    )
    add_output_flags(parser)
    args = parser.parse_args(argv)
    start = time.time()
    with json_alone(args.json):
        figures = run_demo(args.out, args.quiet)
    if args.json:
        print_figures(figures)
    elif not args.quiet:
        seconds = time.time() - start
        print(f"\n{sets_table(figures).text()}\n\n{seconds:.0f} s. Written to {args.out}:")
        print("  report/report.html  demo.log  experiments/adaptive/models/net_g_latest.pth")
