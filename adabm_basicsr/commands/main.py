"""The ``adabm-basicsr`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.version import __version__

COMMANDS = {
    "demo": "quantize EDSR on photographs that are installed already, and compare",
    "train": "calibrate and fine-tune a quantized network (BasicSR's flags: -opt FILE, ...)",
    "test": "validate a network (BasicSR's flags: -opt FILE, ...)",
    "options": "every option of an option file: kind, default and what it does",
    "prepare": "make low-resolution images from high-resolution ones",
    "export": "write a quantized checkpoint as a file to deploy",
    "upscale": "super-resolve images with a checkpoint or an exported file",
    "import": "convert a quantized checkpoint of the published code",
    "report": "what a run did: figures, plots and pictures in one file to open",
    "compare": "runs side by side",
    "inspect": "what is in a checkpoint, packed file or ONNX file",
    "autoload": "let BasicSR's own entry points find this plugin: on, off or status",
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an `AdaBMError`, or a file that the system refuses, into one line on stderr and exit code 2.

    Ctrl-C gives a line too, with what its exception says of how to go on, and exit code 130.
    """
    os.environ.setdefault(
        "OPENCV_LOG_LEVEL", "SILENT"
    )  # what is wrong with an image is in that line
    try:
        yield
    except (AdaBMError, OSError) as error:
        print(f"adabm-basicsr: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as interruption:
        print(f"adabm-basicsr: interrupted{interruption}", file=sys.stderr)
        raise SystemExit(130) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr",
        description="Adaptive quantization for BasicSR networks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    known = parser.parse_args(argv[:1])
    # The rest is parsed by the command's own module, imported only now: --help must not wait for torch.
    with one_line_errors():
        _run(known.command, argv[1:])


def _run(command: str, argv: list[str]) -> None:
    if command == "train":
        from adabm_basicsr.train import main as run
    elif command == "test":
        from adabm_basicsr.test import main as run
    elif command == "options":
        from adabm_basicsr.commands.options import main as run
    elif command == "prepare":
        from adabm_basicsr.data.prepare import main as run
    elif command == "export":
        from adabm_basicsr.commands.export import main as run
    elif command == "upscale":
        from adabm_basicsr.deployment.upscale import main as run
    elif command == "import":
        from adabm_basicsr.archs.published import main as run
    elif command == "report":
        from adabm_basicsr.commands.report import main as run
    elif command == "compare":
        from adabm_basicsr.report.compare import main as run
    elif command == "inspect":
        from adabm_basicsr.report.inspect import main as run
    elif command == "autoload":
        from adabm_basicsr.commands.autoload import main as run
    else:
        from adabm_basicsr.demo.run import main as run
    run(argv)
