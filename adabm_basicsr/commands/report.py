"""``adabm-basicsr report``: what a run did, in one file to open, with pictures of each variant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adabm_basicsr.bridge.pipeline import close_logger, log_to_file
from adabm_basicsr.commands.flags import add_custom_imports, make_parser
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.report.build import FOLDER, print_figures, report_run
from adabm_basicsr.report.variants import make_pictures
from adabm_basicsr.runs.record import read_record
from adabm_basicsr.terminal import add_output_flags, bars, json_alone

LOG = "report.log"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("report")
    parser.add_argument(
        "folder", type=Path, metavar="EXPERIMENT_DIR", help="experiments/NAME or results/NAME"
    )
    add_custom_imports(parser)
    add_output_flags(parser)
    args = parser.parse_args(argv)
    record = read_record(args.folder)
    log = args.folder / FOLDER / LOG
    with _logging(log, args.quiet), bars(not args.quiet), json_alone(args.json):
        is_quantized = record["recipe"] is not None
        if is_quantized:
            make_pictures(args.folder, record, args.custom_imports)
        figures = report_run(args.folder)
    if args.json:
        print_figures(figures)


@contextmanager
def _logging(log: Path, quiet: bool) -> Iterator[None]:
    """Log to a file within this context; what stays empty is removed."""
    close_logger()
    try:
        log.parent.mkdir(exist_ok=True)
        log_to_file(log, quiet)
    except OSError as error:
        raise AdaBMError(f"cannot write to {log.parent}: {error.strerror}") from error
    try:
        yield
    finally:
        close_logger()
        if not log.stat().st_size:  # the pictures were there already, or a mistake came first
            log.unlink()
