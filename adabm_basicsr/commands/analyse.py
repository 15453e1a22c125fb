"""``adabm-basicsr analyse``: what quantization would come to, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.bridge.analysis import analyse_options
from adabm_basicsr.commands.flags import make_parser
from adabm_basicsr.report.analysis import analysis_figures, analysis_text, write_analysis
from adabm_basicsr.report.build import print_figures
from adabm_basicsr.terminal import add_output_flags, bars, json_alone

FOLDER = "analysis"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("analyse")
    parser.add_argument("-opt", required=True, help="option file (YAML), as train takes it")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help=f"folder to write the page to (default: {FOLDER}/NAME, by the name of the run)",
    )
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="override options"
    )
    parser.set_defaults(launcher="none", auto_resume=False, debug=False)
    add_output_flags(parser)
    args = parser.parse_args(argv)
    with bars(not args.quiet), json_alone(args.json):
        opt, analysis = analyse_options(args)
    figures = analysis_figures(opt, analysis)
    page = write_analysis(figures, args.out or Path(FOLDER) / opt["name"])
    if args.json:
        print_figures(figures)
    elif not args.quiet:
        print(analysis_text(figures))
        print(f"\nwritten: {page}")
