"""Finds the training state that a run goes on from, and takes up its seed and place in the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabm_basicsr.files import remove_temporaries


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """BasicSR's function of the same name, on a CPU too and below the root folder.

    Args:
        opt: BasicSR's options; paths of the networks that belong to the state are put into them.

    Returns:
        The newest training state, or None.

    Raises:
        AdaBMError: The state can't be read.
    """
    from basicsr.utils import check_resume

    from adabm_basicsr.quantization.distributed import from_first
    from adabm_basicsr.runs.training_state import find_state, read_state, resumed_labels

    paths = opt["path"]
    if opt["auto_resume"]:
        found = from_first(find_state(opt))
        if found is not None:
            paths["resume_state"] = str(found)
    if not paths.get("resume_state"):
        return None
    path = Path(paths["resume_state"])
    # On the CPU, where optimizers count their steps; moments go to their parameters' devices.
    state = read_state(path)
    check_resume(opt, state["iter"])
    # State and networks belong together, though the experiment may lie elsewhere by now.
    models = path.parents[1] / "models"
    for label in resumed_labels(opt):
        name = f"net_{label}_{state['iter']}.pth"
        paths[f"pretrain_network_{label}"] = str(models / name)
    _continue_experiment(opt, state)
    return state


def _continue_experiment(opt: dict[str, Any], state: Mapping[str, Any]) -> None:
    """Take up an earlier run's seed and place in the data, and tidy up after it."""
    from basicsr.utils import set_random_seed

    from adabm_basicsr.models.setup import gpus_per_process

    # BasicSR begins the interrupted epoch anew; our dataset skips what it has given already.
    opt["datasets"]["train"]["resume_at"] = {
        "epoch": state["epoch"],
        "iter": state["iter"],
        "gpus": gpus_per_process(opt),
    }
    opt["manual_seed"] = state.get("manual_seed", opt["manual_seed"])
    set_random_seed(opt["manual_seed"] + opt["rank"])
    if opt["rank"] == 0:
        for key in ("models", "training_states"):
            folder = Path(opt["path"][key])
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporaries(folder)
