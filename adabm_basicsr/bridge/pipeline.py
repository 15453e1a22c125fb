"""Runs BasicSR's own pipelines on options that were read and checked by us."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adabm_basicsr.bridge.run_options import make_parser, parse_options
from adabm_basicsr.environment import keep_freed_memory, weights_only
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.runs.lock import leave_folder, take_folder
from adabm_basicsr.runs.training_state import find_state
from adabm_basicsr.terminal import ConsoleHandler, add_output_flags, bars, json_alone, with_console

LOGGER = "basicsr"


def run_pipeline(
    argv: Sequence[str] | None, is_train: bool, prog: str, own_log: bool = True
) -> None:
    """Run BasicSR's ``train_pipeline`` or ``test_pipeline`` below the working directory.

    Args:
        argv: Flags as BasicSR's ``train.py`` and ``test.py`` take them; those of the process by
            default.
        is_train: Which of the two.
        prog: Name of the command in messages.
        own_log: Whether the run logs to the console and to a file of its own and ends with a
            report, or logs to the log that is open.

    Raises:
        AdaBMError: A mistake in the options or in what they name.
    """
    if argv is None:
        argv = sys.argv[1:]
    parser = make_parser(prog)
    add_output_flags(parser)
    args = parser.parse_args(argv)
    command = f"{prog} {shlex.join(argv)}"
    with weights_only():
        _run_checked(args, command, is_train, own_log)


def _run_checked(args: argparse.Namespace, command: str, is_train: bool, own_log: bool) -> None:
    """Check the options, then run and report."""
    root = Path.cwd()
    start = time.time()
    opt = parse_options(args, root, is_train)
    opt["command"] = command
    if not opt["num_gpu"]:
        keep_freed_memory()
    if own_log:
        close_logger()  # one that something opened earlier in this process would take the messages
    try:
        with _clear_write_errors():
            note = take_folder(opt)
            with bars(_shows_bars(opt, args.quiet)), json_alone(args.json):
                _run(opt, args, root, note)
            if own_log and opt["rank"] == 0:
                _report(opt, args.json)
    except KeyboardInterrupt as interruption:
        advice = ""
        if is_train:
            advice = _how_to_go_on(opt, start)
        raise type(interruption)(advice) from None
    finally:
        leave_folder(opt)
        if own_log:
            close_logger()


def _how_to_go_on(opt: dict[str, Any], start: float) -> str:
    """Which state an interrupted run can be continued from.

    Those of an earlier run that it replaces don't count.
    """
    state = find_state(opt)
    if state and (opt["auto_resume"] or state.stat().st_mtime >= start):
        return f"; --auto_resume goes on from {os.path.relpath(state)}"
    return " before a training state was saved: run it again"


def _run(opt: dict[str, Any], args: argparse.Namespace, root: Path, note: str) -> None:
    """Run BasicSR's pipeline on our options, with our console; ``note`` is said first."""
    import basicsr.test
    import basicsr.train

    from adabm_basicsr.models.tensorboard import keeping_writer
    from adabm_basicsr.quantization.distributed import end_processes

    module: Any = basicsr.test
    replaced = {
        "parse_options": lambda root_path, is_train: (opt, args),
        "get_root_logger": with_console(basicsr.test.get_root_logger, args.quiet, note),
    }
    if opt["is_train"]:
        module = basicsr.train
        replaced["get_root_logger"] = with_console(basicsr.train.get_root_logger, args.quiet, note)
        replaced["init_tb_loggers"] = keeping_writer(basicsr.train.init_tb_loggers)
    original = {name: getattr(module, name) for name in replaced}
    vars(module).update(replaced)
    try:
        if opt["is_train"]:
            module.train_pipeline(str(root))
        else:
            module.test_pipeline(str(root))
        end_processes()
    finally:
        vars(module).update(original)


def _shows_bars(opt: dict[str, Any], quiet: bool) -> bool:
    """Whether bars move.

    BasicSR's own, which would be shown without a terminal too, never do.
    """
    shows = not quiet and opt["rank"] == 0
    for section in ("train", "val"):
        options = opt.get(section) or {}
        if options.pop("pbar", True) is False:
            shows = False
    return shows


def _report(opt: dict[str, Any], as_json: bool) -> None:
    """Write the report of a run that noted figures; BasicSR's own models don't."""
    from adabm_basicsr.report.build import print_figures, report_run
    from adabm_basicsr.runs.record import FILE

    folder = Path(opt["path"]["log"])
    if not (folder / FILE).is_file():
        return
    figures = report_run(folder)
    if as_json:
        print_figures(figures)


@contextmanager
def _clear_write_errors() -> Iterator[None]:
    """Turn a file that BasicSR can't write, or read, into an `AdaBMError`."""
    logging.raiseExceptions = False  # a full disk would give a traceback for each line of the log
    try:
        yield
    except OSError as error:
        raise AdaBMError(f"the run stopped: {error}") from error
    finally:
        logging.raiseExceptions = True


def log_to_file(path: str | Path, quiet: bool = False) -> None:
    """Send BasicSR's log to a file, and phases and warnings to the console, until `close_logger`.

    Args:
        path: The file.
        quiet: Whether the console shows warnings alone.
    """
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    logging.getLogger(LOGGER).addHandler(handler)
    log_to_console(quiet)


def log_to_console(quiet: bool = False) -> None:
    """Show phases and warnings of BasicSR's log on the console, until `close_logger`.

    Args:
        quiet: Whether the console shows warnings alone.
    """
    from basicsr.utils.logger import initialized_logger

    logger = logging.getLogger(LOGGER)
    logger.addHandler(ConsoleHandler(quiet))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    initialized_logger[LOGGER] = True


def close_logger() -> None:
    """Close the log, so that the next pipeline of this process writes to its own file."""
    from basicsr.utils.logger import initialized_logger

    logger = logging.getLogger(LOGGER)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    initialized_logger.pop(LOGGER, None)
