"""Runs BasicSR's own pipelines on options that were read and checked by us."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.compat import keep_freed_memory, load_weights_only
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.options import make_parser, parse_options


def run_pipeline(argv: Sequence[str] | None, is_train: bool, prog: str, own_log: bool = True) -> None:
    """Run BasicSR's ``train_pipeline`` or ``test_pipeline`` below the working directory.

    Args:
        argv: Flags as BasicSR's ``train.py`` and ``test.py`` take them; those of the process by default.
        is_train: Which of the two.
        prog: Name of the command in messages.
        own_log: Whether the run logs to the console and to a file of its own, or to the log that is open.

    Raises:
        AdaBMError: A mistake in the options or in what they name.
    """
    args = make_parser(prog).parse_args(argv)
    root = Path.cwd()
    load_weights_only()
    opt = parse_options(args, root, is_train)
    if not opt["num_gpu"]:
        keep_freed_memory()
    import basicsr.test
    import basicsr.train

    module = basicsr.train if is_train else basicsr.test
    pipeline = module.train_pipeline if is_train else module.test_pipeline
    original = module.parse_options
    if own_log:
        close_logger()  # one that something opened earlier in this process would take the messages
    module.parse_options = lambda root_path, is_train: (opt, args)
    try:
        pipeline(str(root))
    except OSError as error:  # of folders and files that BasicSR makes itself
        raise AdaBMError(str(error)) from error
    finally:
        module.parse_options = original
        if own_log:
            close_logger()


def log_to_file(path: str | Path) -> None:
    """Send BasicSR's log to a file alone, not to the console, until `close_logger`."""
    from basicsr.utils.logger import initialized_logger

    logger = logging.getLogger("basicsr")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    initialized_logger["basicsr"] = True


def close_logger() -> None:
    """Close the log, so that the next pipeline of this process writes to its own file."""
    from basicsr.utils.logger import initialized_logger

    logger = logging.getLogger("basicsr")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    initialized_logger.pop("basicsr", None)
