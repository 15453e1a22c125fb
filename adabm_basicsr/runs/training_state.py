"""What a run saves beside its network, to be continued as if it had never been interrupted."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.checkpoint import load_tensors

SUFFIX = ".state"
NEEDED = ("epoch", "iter", "optimizers", "schedulers")


def read_state(path: str | Path) -> dict[str, Any]:
    """A training state that BasicSR or `AdaBMModel` saved, on the CPU.

    Raises:
        AdaBMError: The file is missing, can't be read or is something else.
    """
    try:
        state = load_tensors(path)
    except AdaBMError as error:
        if not Path(path).is_file():
            raise
        raise AdaBMError(
            f"{error}; delete that file and --auto_resume takes the one before"
        ) from error
    found = dict(state) if isinstance(state, Mapping) else {}
    missing = [key for key in NEEDED if key not in found]
    if missing:
        raise AdaBMError(f"{path} is no training state: {', '.join(missing)} missing")
    return found


def newest_state(folder: str | Path, models: str | Path, labels: list[str]) -> Path | None:
    """The latest training state whose networks were saved too; None if there is none.

    Args:
        folder: Where training states are: ``ITERATION.state``.
        models: Where networks are: ``net_LABEL_ITERATION.pth``.
        labels: Labels of the networks that belong to a state.
    """
    newest = None
    for state in Path(folder).glob(f"*{SUFFIX}"):
        if not state.stem.isdigit():
            continue
        networks = [Path(models) / f"net_{label}_{state.stem}.pth" for label in labels]
        if not all(network.is_file() for network in networks):
            continue
        if newest is None or int(state.stem) > int(newest.stem):
            newest = state
    return newest


def find_state(opt: Mapping) -> Path | None:
    """The latest training state of the run of BasicSR's options ``opt``, see `newest_state`."""
    paths = opt["path"]
    return newest_state(paths["training_states"], paths["models"], resumed_labels(opt))


def resumed_labels(opt: Mapping) -> list[str]:
    """Labels of the networks that a run takes up when it is resumed."""
    ignored = opt["path"].get("ignore_resume_networks") or ()
    labels = []
    for key in opt:
        if key.startswith("network_") and key not in ignored:
            labels.append(key.removeprefix("network_"))
    return labels


def random_state() -> dict[str, Any]:
    """States of the random generators of Python, numpy and torch, in plain types.

    Where there is a GPU, that of this process's GPU too.
    """
    of_numpy: Any = np.random.get_state()
    kind, keys, *rest = of_numpy
    state = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping) -> None:
    """Set what `random_state` gave."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
