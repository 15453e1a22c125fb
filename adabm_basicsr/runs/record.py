"""``run.json`` beside a run's log: all that the run tells of itself, and the one source of every figure."""

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

from adabm_basicsr.errors import AdaBMError, near_paths
from adabm_basicsr.files import atomic_path
from adabm_basicsr.terminal import say
from adabm_basicsr.version import __version__

FILE = "run.json"
FORMAT = 1
MAX_LISTED = 4


class RunRecord:
    """The facts of a run, written anew whenever one is added.

    Args:
        opt: BasicSR's options of the run. A resumed run goes on with what the interrupted one told.

    Attributes:
        facts: What is written, in JSON's types.
    """

    def __init__(self, opt: Mapping) -> None:
        self.folder = Path(opt["path"]["log"])
        self.writes = opt["rank"] == 0
        self.started = time.perf_counter()
        resumes = (
            opt["is_train"] and opt["path"].get("resume_state") and (self.folder / FILE).is_file()
        )
        self.facts = (
            read_record(self.folder) if resumes else {"phases": [], "sets": {}, "seconds": 0.0}
        )
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
        """Add a phase that ended at ``iteration``, with the loss before and after it, and say so in a line."""
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
        """Drop the phases that an interrupted run, which is resumed from ``iteration``, does again."""
        self.note(
            phases=[
                phase for phase in self.facts["phases"] if phase.get("iteration", 0) <= iteration
            ]
        )


def describe_phase(phase: Mapping) -> str:
    """One line on a phase."""
    before, after = phase["loss_before"], phase["loss_after"]
    losses = [f"{loss:.4g}" for loss in (before, after) if loss is not None]
    told = f", loss {' -> '.join(losses)}" if losses else ""
    return f"{phase['name']}: {phase['seconds']:.1f} s{told}"


def _describe_run(opt: Mapping) -> dict:
    import basicsr
    import torch

    versions = {
        "adabm-basicsr": __version__,
        "basicsr": basicsr.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    on_gpu = opt["num_gpu"] != 0 and torch.cuda.is_available()
    return {
        "format": FORMAT,
        "name": opt["name"],
        "kind": "train" if opt["is_train"] else "test",
        "command": opt.get("command") or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "directory": os.getcwd(),
        "started": datetime.now().isoformat(timespec="seconds"),
        "versions": versions,
        "device": torch.cuda.get_device_name()
        if on_gpu
        else f"CPU, threads: {torch.get_num_threads()}",
        "seed": opt["manual_seed"],
        "scale": opt.get("scale", 1),
        "options": plain(
            {key: value for key, value in opt.items() if key != "command"}
        ),  # datasets change theirs
    }


def read_record(folder: Path) -> dict:
    """The facts of the run in a folder.

    Raises:
        AdaBMError: There are none, or they can't be read.
    """
    path = folder / FILE
    if not os.path.isfile(path):
        runs = ", ".join(
            sorted(str(found.parent) for found in folder.glob(f"*/{FILE}"))[:MAX_LISTED]
        )
        raise AdaBMError(
            f"{folder} holds no {FILE}: name a folder of one run, experiments/NAME or results/NAME, that "
            f"adabm-basicsr train or test wrote{f', such as {runs}' if runs else near_paths(folder)}"
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
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=1), encoding="utf-8")


def plain(value: object) -> object:
    """``value`` in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, type(None))) else str(value)
