"""What a run shows on the console."""

import fcntl
import json
import logging
import os
import pty
import struct
import sys
import termios

import pytest

from adabm_basicsr.quantization.progress import progress, tracked
from adabm_basicsr.terminal import ConsoleHandler, bars, say


def shown(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_run_shows_a_line_per_phase_and_no_bars_without_a_terminal(workspace, capfd):
    workspace.train()
    out, err = capfd.readouterr()
    lines = err.splitlines()
    starts = [
        "Calibration: ",
        "Clipping search: ",
        "Fine-tuning weight ranges, iterations 1 to 4: ",
    ]
    starts += [
        "Fine-tuning activation ranges, iterations 5 to 8: ",
        "Fine-tuning bit mappings, iterations 9 to 12: ",
    ]
    starts += ["Report: "]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    assert all(" -> " in line for line in lines[1:5])
    assert out == ""


def test_quiet_and_json(workspace, capfd):
    workspace.train("--quiet", "--json")
    out, err = capfd.readouterr()
    assert err == ""
    assert json.loads(out) == json.loads(
        (workspace.root / "experiments/tiny/report/report.json").read_text()
    )


def test_warnings_are_shown_even_if_quiet(capsys):
    handler = ConsoleHandler(quiet=True)
    # BasicSR's warning, which isn't true of our model.
    several = "Multiple validation datasets are *only* supported by SRModel."
    for level, text in (
        (logging.INFO, "much"),
        (logging.WARNING, "beware"),
        (logging.WARNING, several),
    ):
        handler.emit(logging.LogRecord("basicsr", level, "", 0, text, (), None))
    assert shown(capsys) == ["beware"]


def test_what_was_only_logged_is_not_shown(capsys):
    logger = logging.getLogger("basicsr")
    handler = ConsoleHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        logger.info("in the file alone")
        say("for all")
    finally:
        logger.removeHandler(handler)
    assert shown(capsys) == ["for all"]


@pytest.mark.parametrize("wanted", [True, False])
def test_bars_move_on_a_terminal(wanted, monkeypatch):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with bars(wanted):
            assert list(tracked([1, 2, 3], "Clipping search")) == [1, 2, 3]
            progress("Export", 1).close()
        stderr.flush()
        os.set_blocking(master, False)
        try:
            written = os.read(master, 1 << 16).decode()
        except BlockingIOError:
            written = ""
    os.close(master)
    assert ("Clipping search" in written and "/3 [" in written) is wanted


def test_steps_are_counted_to_the_end(tiny):
    import torch

    from adabm_basicsr import calibrate, quantize
    from adabm_basicsr.quantization.progress import shown_by

    made = []

    class Bar:
        def __init__(self, description, total):
            made.append([description, total, 0, False])

        def update(self, steps=1):
            made[-1][2] += steps

        def close(self):
            made[-1][3] = True

    net = quantize(tiny, torch.zeros(1, 3, 24, 24), fully_quantized=True)
    with shown_by(Bar):
        calibrate(net, [torch.rand(2, 3, 24, 24)])
    assert [bar[0] for bar in made] == ["Ranges of layers", "Sensitivities", "Rounding of layers"]
    assert all(total == steps and closed for _, total, steps, closed in made)
