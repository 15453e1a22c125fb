"""Joins the processes of a run, on GPUs or CPUs, and gives them one seed."""

from __future__ import annotations

import os
import random
import subprocess
from typing import Any

from adabm_basicsr.errors import OptionError

DEFAULT_PORT = 29500  # torch.distributed's
# By launcher: what it sets in the environment, and the program that starts the processes.
VARIABLES = {
    "pytorch": ("RANK", "WORLD_SIZE"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST"),
}
STARTERS = {"pytorch": "torchrun", "slurm": "srun"}


def join_processes(opt: dict[str, Any], launcher: str) -> None:
    """Meet the other processes of the run and note ``dist``, ``rank`` and ``world_size``.

    Args:
        opt: BasicSR's options, changed in place.
        launcher: ``none``, ``pytorch`` or ``slurm``.

    Raises:
        OptionError: What started the process is another launcher.
    """
    from adabm_basicsr.quantization.distributed import rank_and_size

    opt["dist"] = launcher != "none"
    if opt["dist"]:
        params: dict[str, Any] = {}
        if launcher == "slurm":
            params = opt.get("dist_params") or {}
        init_dist(launcher, bool(opt["num_gpu"]), **params)
    opt["rank"], opt["world_size"] = rank_and_size()


def init_dist(launcher: str, on_gpu: bool | None = None, **params: Any) -> None:
    """BasicSR's function of the same name, for processes without GPUs too.

    BasicSR's own knows NCCL alone; processes without GPUs take gloo.

    Args:
        launcher: ``pytorch`` (torchrun) or ``slurm``.
        on_gpu: Whether the processes use GPUs; by default where there are any.
        **params: ``port``, with slurm.

    Raises:
        OptionError: What started the process is another launcher.
    """
    import torch
    import torch.distributed as dist
    from basicsr.utils import dist_util

    for name in VARIABLES[launcher]:
        if name not in os.environ:
            raise OptionError(
                f"--launcher {launcher}: {name} is not set in the environment; start with "
                f"{STARTERS[launcher]}"
            )
    if on_gpu is None:
        on_gpu = torch.cuda.is_available()
    if on_gpu:
        dist_util.init_dist(launcher, **params)
        return
    if launcher == "slurm":
        _take_over_from_slurm(params.get("port"))
    dist.init_process_group("gloo")


def _take_over_from_slurm(port: int | None) -> None:
    """Set what torch.distributed reads in the environment, as BasicSR does for GPUs."""
    command = ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]]
    hosts = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    os.environ["MASTER_ADDR"] = hosts[0]
    if port:
        os.environ["MASTER_PORT"] = str(port)
    else:
        os.environ.setdefault("MASTER_PORT", str(DEFAULT_PORT))
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]


def seed_processes(opt: dict[str, Any]) -> None:
    """Seed this process; draw ``manual_seed`` where the options leave it open."""
    if opt.get("manual_seed") is None:
        opt["manual_seed"] = random.randint(1, 10000)
    share_seed(opt)


def share_seed(opt: dict[str, Any]) -> None:
    """Seed this process from the first one's ``manual_seed``.

    BasicSR draws another in each process where none is given.
    """
    from basicsr.utils import set_random_seed

    from adabm_basicsr.quantization.distributed import from_first

    opt["manual_seed"] = from_first(opt["manual_seed"])
    set_random_seed(opt["manual_seed"] + opt["rank"])
