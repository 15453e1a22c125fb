"""``adabm-basicsr report``: what a run did, in one file to open, with the pictures of every version."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.bridge.pipeline import close_logger, log_to_file
from adabm_basicsr.commands.export import add_custom_imports
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.report.build import FOLDER, print_figures, report_run
from adabm_basicsr.report.variants import make_pictures
from adabm_basicsr.runs.record import read_record
from adabm_basicsr.terminal import add_output_flags, bars, json_alone

LOG = "report.log"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr report``."""
    args = _parse(argv)
    record = read_record(args.folder)
    close_logger()
    log = args.folder / FOLDER / LOG
    try:
        log.parent.mkdir(exist_ok=True)
        log_to_file(log, args.quiet)
    except OSError as error:
        raise AdaBMError(f"cannot write to {log.parent}: {error.strerror}") from error
    try:
        with bars(not args.quiet), json_alone(args.json):
            if record["recipe"] is not None:
                make_pictures(args.folder, record, args.custom_imports)
            figures = report_run(args.folder)
    finally:
        close_logger()
        if not log.stat().st_size:  # the pictures were there already, or a mistake came first
            log.unlink()
    if args.json:
        print_figures(figures)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr report", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "folder", type=Path, metavar="EXPERIMENT_DIR", help="experiments/NAME or results/NAME"
    )
    add_custom_imports(parser)
    add_output_flags(parser)
    return parser.parse_args(argv)
