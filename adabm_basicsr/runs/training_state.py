"""What a run saves beside its network, so that it can be continued as if it had never been interrupted."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.checkpoint import load_tensors

SUFFIX = ".state"
NEEDED = ("epoch", "iter", "optimizers", "schedulers")


def read_state(path: str | Path, device: str = "cpu") -> dict:
    """A training state that BasicSR or `AdaBMModel` saved.

    Raises:
        AdaBMError: The file is missing, can't be read or is something else.
    """
    try:
        state = load_tensors(path, device)
    except AdaBMError as error:
        if not Path(path).is_file():
            raise
        raise AdaBMError(
            f"{error}; delete that file and --auto_resume takes the one before"
        ) from error
    missing = (
        [key for key in NEEDED if key not in state] if isinstance(state, Mapping) else list(NEEDED)
    )
    if missing:
        raise AdaBMError(f"{path} is no training state: {', '.join(missing)} missing")
    return dict(state)


def newest_state(folder: str | Path, models: str | Path, labels: list[str]) -> Path | None:
    """The latest training state whose networks were saved too; None if there is none.

    Args:
        folder: Where training states are: ``ITERATION.state``.
        models: Where networks are: ``net_LABEL_ITERATION.pth``.
        labels: Labels of the networks that belong to a state.
    """
    states = [path for path in Path(folder).glob(f"*{SUFFIX}") if path.stem.isdigit()]
    whole = [
        state
        for state in states
        if all((Path(models) / f"net_{label}_{state.stem}.pth").is_file() for label in labels)
    ]
    return max(whole, key=lambda path: int(path.stem), default=None)


def find_state(opt: Mapping) -> Path | None:
    """The latest training state of the run of BasicSR's options ``opt``, see `newest_state`."""
    return newest_state(opt["path"]["training_states"], opt["path"]["models"], resumed_labels(opt))


def resumed_labels(opt: Mapping) -> list[str]:
    """Labels of the networks that a run takes up when it is resumed."""
    labels = [key.removeprefix("network_") for key in opt if key.startswith("network_")]
    return [
        label
        for label in labels
        if f"network_{label}" not in (opt["path"].get("ignore_resume_networks") or ())
    ]


def random_state() -> dict:
    """States of the random generators of Python, numpy and torch, of this process's GPU too; in plain types."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def set_random_state(state: Mapping) -> None:
    """Set what `random_state` gave."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
