"""The ``adabm-basicsr`` command, and the table of what it can do."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from adabm_basicsr.errors import AdaBMError, OptionError, did_you_mean
from adabm_basicsr.version import __version__

MISTAKE = 2  # exit code
INTERRUPTED = 130  # as of a process that Ctrl-C ended
PIPE_CLOSED = 141  # as of a process whose reader is gone
TERMINATED = 143  # as of a process that SIGTERM ended


class Terminated(KeyboardInterrupt):
    """SIGTERM came: everything tidies up as after Ctrl-C."""


class Command(NamedTuple):
    """A command: ``main(argv)`` of a module.

    Attributes:
        module: Its full name.
        help: What the command does, in a sentence.
    """

    module: str
    help: str


COMMANDS = {
    "demo": Command(
        "adabm_basicsr.commands.demo",
        "quantize EDSR on photographs that are installed already, and compare",
    ),
    "analyse": Command(
        "adabm_basicsr.commands.analyse",
        "what quantization would come to, before anything is trained (-opt FILE)",
    ),
    "train": Command(
        "adabm_basicsr.commands.train",
        "calibrate and fine-tune a quantized network (BasicSR's flags: -opt FILE, ...)",
    ),
    "test": Command(
        "adabm_basicsr.commands.test",
        "validate a network (BasicSR's flags: -opt FILE, ...)",
    ),
    "options": Command(
        "adabm_basicsr.commands.options",
        "every option of an option file: kind, default and what it does",
    ),
    "prepare": Command(
        "adabm_basicsr.commands.prepare",
        "make low-resolution images from high-resolution ones",
    ),
    "export": Command(
        "adabm_basicsr.commands.export",
        "write a quantized checkpoint as a file to deploy",
    ),
    "upscale": Command(
        "adabm_basicsr.commands.upscale",
        "super-resolve images or clips with a checkpoint or an exported file",
    ),
    "import": Command(
        "adabm_basicsr.commands.import_published",
        "convert a quantized checkpoint of the published code",
    ),
    "report": Command(
        "adabm_basicsr.commands.report",
        "what a run did: figures, plots and pictures in one file to open",
    ),
    "compare": Command(
        "adabm_basicsr.commands.compare",
        "runs side by side",
    ),
    "inspect": Command(
        "adabm_basicsr.commands.inspect",
        "what is in a checkpoint or an exported file",
    ),
    "autoload": Command(
        "adabm_basicsr.commands.autoload",
        "let BasicSR's own entry points find this plugin: on, off or status",
    ),
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an `AdaBMError`, or a file that the system refuses, into one line and exit code 2.

    Ctrl-C and SIGTERM give a line too, with what their exception says of how to go on, and exit
    codes 130 and 143. Lines go to stderr. Where nobody reads the output any more (``| head``), the
    command ends quietly.
    """
    # What is wrong with an image is in that line; OpenCV needn't say it too.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        with _raising_on_sigterm():
            yield
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None
    except (AdaBMError, OSError) as error:
        print(f"adabm-basicsr: error: {error}", file=sys.stderr)
        raise SystemExit(MISTAKE) from None
    except Terminated as termination:
        print(f"adabm-basicsr: terminated{termination}", file=sys.stderr)
        raise SystemExit(TERMINATED) from None
    except KeyboardInterrupt as interruption:
        print(f"adabm-basicsr: interrupted{interruption}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, by which Python would end at once and leave things half-done.

    Only the main thread can; where the process ignores the signal, it still does.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command: the entry point of the console script.

    Args:
        argv: The command's name and its flags; those of the process by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr",
        description="Adaptive quantization for BasicSR networks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    names = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        names.add_parser(name, help=command.help, add_help=False)
    with one_line_errors():
        chosen = _chosen(parser, argv)
        # The command parses the rest. Its module is imported only now: --help must not wait for
        # torch.
        module = importlib.import_module(COMMANDS[chosen].module)
        module.main(argv[1:])


def _chosen(parser: argparse.ArgumentParser, argv: Sequence[str]) -> str:
    """The command that the first word names."""
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise OptionError(f"unknown command {argv[0]!r}; {did_you_mean(argv[0], COMMANDS)}")
    chosen: str = parser.parse_args(argv[:1]).command
    return chosen
