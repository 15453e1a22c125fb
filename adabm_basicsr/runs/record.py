"""``run.json`` beside a run's log: what the run records of itself, and every figure's source."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from adabm_basicsr.errors import AdaBMError, near_paths
from adabm_basicsr.files import atomic_path
from adabm_basicsr.terminal import say
from adabm_basicsr.version import __version__

FILE = "run.json"
FORMAT = 1
MAX_LISTED = 4


class RunRecord:
    """The facts of a run, written anew whenever one is added.

    A resumed run goes on with what the interrupted one recorded.

    Args:
        opt: BasicSR's options of the run.

    Attributes:
        facts: What is written, in JSON's types.
    """

    def __init__(self, opt: Mapping) -> None:
        self.folder = Path(opt["path"]["log"])
        self.writes = opt["rank"] == 0
        self.started = time.perf_counter()
        resumes = opt["is_train"] and opt["path"].get("resume_state")
        self.facts: dict[str, Any] = {"phases": [], "sets": {}, "seconds": 0.0}
        if resumes and (self.folder / FILE).is_file():
            self.facts = read_record(self.folder)
        self.seconds_before = self.facts["seconds"]
        self.facts |= _describe_run(opt)

    def note(self, **facts: object) -> None:
        """Add facts, replacing those of the same name, and write."""
        self.facts |= facts
        self.facts["seconds"] = self.seconds_before + time.perf_counter() - self.started
        if self.writes:
            write_json(self.folder / FILE, self.facts)

    def note_phase(
        self,
        name: str,
        iteration: int,
        seconds: float,
        before: float | None = None,
        after: float | None = None,
    ) -> None:
        """Add a phase and log it.

        Args:
            name: What was done.
            iteration: Where it ended.
            seconds: How long it took.
            before: Loss before it, where there was one.
            after: Loss after it.
        """
        phase = {
            "name": name,
            "iteration": iteration,
            "seconds": seconds,
            "loss_before": before,
            "loss_after": after,
        }
        self.note(phases=[*self.facts["phases"], phase])
        say(describe_phase(phase))

    def forget_phases_after(self, iteration: int) -> None:
        """Drop the phases that an interrupted run, which is resumed from there, does again."""
        kept = []
        for phase in self.facts["phases"]:
            if phase.get("iteration", 0) <= iteration:
                kept.append(phase)
        self.note(phases=kept)


def describe_phase(phase: Mapping) -> str:
    """One line on a phase."""
    line = f"{phase['name']}: {phase['seconds']:.1f} s"
    losses = []
    for loss in (phase["loss_before"], phase["loss_after"]):
        if loss is not None:
            losses.append(f"{loss:.4g}")
    if losses:
        line += f", loss {' -> '.join(losses)}"
    return line


def command_of(opt: Mapping) -> str:
    """The command of a run, as one would type it."""
    return opt.get("command") or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _describe_run(opt: Mapping) -> dict[str, Any]:
    # Heavy, and reading a record needs neither.
    import basicsr
    import torch

    device = f"CPU, threads: {torch.get_num_threads()}"
    if opt["num_gpu"] != 0 and torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    options = {key: value for key, value in opt.items() if key != "command"}
    return {
        "format": FORMAT,
        "name": opt["name"],
        "kind": "train" if opt["is_train"] else "test",
        "command": command_of(opt),
        "directory": str(Path.cwd()),
        "started": datetime.now().isoformat(timespec="seconds"),
        "versions": {
            "adabm-basicsr": __version__,
            "basicsr": basicsr.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": device,
        "seed": opt["manual_seed"],
        "scale": opt.get("scale", 1),
        # A copy, as datasets change theirs.
        "options": plain(options),
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The facts of the run in a folder.

    Raises:
        AdaBMError: There are none, or they can't be read.
    """
    path = folder / FILE
    # Path.is_file raises for names that are too long and folders that are closed.
    if not os.path.isfile(path):  # noqa: PTH113
        runs = sorted(str(found.parent) for found in folder.glob(f"*/{FILE}"))
        hint = near_paths(folder)
        if runs:
            hint = f", such as {', '.join(runs[:MAX_LISTED])}"
        raise AdaBMError(
            f"{folder} holds no {FILE}: name a folder of one run, experiments/NAME or "
            f"results/NAME, that adabm-basicsr train or test wrote{hint}"
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdaBMError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise AdaBMError(f"{path} is no record of a run that this version reads")
    return facts


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically; what isn't finite becomes null, which any reader takes."""
    text = json.dumps(plain(content), indent=1)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plain(value: object) -> Any:
    """``value`` in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)
