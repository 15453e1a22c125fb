"""What is saved of the course of training, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adabm_basicsr.errors import OptionError
from adabm_basicsr.quantization.checkpoint import save_tensors
from adabm_basicsr.quantization.distributed import gather_objects
from adabm_basicsr.quantization.finetuning.best_state import BestState
from adabm_basicsr.runs.training_state import SUFFIX


def write_state(
    opt: Mapping[str, Any],
    epoch: int,
    iteration: int,
    course: Mapping[str, Any],
    optimizers: Sequence[torch.optim.Optimizer],
    best: BestState | None,
    random_state: Mapping[str, Any],
) -> None:
    """Write the training state of all processes, atomically.

    Args:
        opt: BasicSR's options.
        epoch: Epoch that training is in.
        iteration: Iterations done.
        course: What must be the same in the run that goes on.
        optimizers: One for each phase.
        best: The best state so far, of recipes that keep it.
        random_state: That of this process.
    """
    state: dict[str, Any] = {
        "epoch": epoch,
        "iter": iteration,
        "manual_seed": opt["manual_seed"],
    }
    state.update(course)
    state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    state["schedulers"] = []  # learning rates follow from the iteration
    if best is not None:
        state["best"] = best.state_dict()
    state["random"] = gather_objects(random_state)  # of each process
    if opt["rank"] == 0:
        save_tensors(state, Path(opt["path"]["training_states"], f"{iteration}{SUFFIX}"))


def check_course(course: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Check that a training state is of a run with the same course.

    Raises:
        OptionError: It isn't.
    """
    for key, value in course.items():
        saved = state.get(key, value)
        if saved != value:
            raise OptionError(
                f"cannot resume: {key.replace('_', ' ')} were {saved} when the run was saved, and "
                f"are {value} now; use the same recipe, images and batch size"
            )


def own_random_state(opt: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The random state of this process; None where the run had another number of processes."""
    states = state.get("random", [])
    if len(states) != opt["world_size"]:
        return None
    return states[opt["rank"]]
