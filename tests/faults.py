"""Faults that tests bring about: processes that are killed, and runs in several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
# Children of a process that has imported everything already: they start at once.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["adabm_basicsr", "basicsr.train", "basicsr.test"])


def _train(folder: Path, flags: tuple[str, ...]) -> None:
    from adabm_basicsr.train import main

    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv = ["adabm-basicsr"]
    with (
        Path("output.txt").open("a") as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        main(["-opt", "options.yml", *flags])


def start_training(folder: Path, *flags: str) -> multiprocessing.Process:
    """Run `adabm-basicsr train -opt options.yml` in a child that goes on."""
    child = FORKS.Process(target=_train, args=(folder, flags))
    child.start()
    return child


def train_to_death(folder: Path, prepare: Callable[[], None], *flags: str) -> int:
    """Run `adabm-basicsr train -opt options.yml` in a child; returns its exit code.

    The child calls ``prepare`` first.
    """
    child = FORKS.Process(target=_prepare_and_train, args=(folder, prepare, flags))
    child.start()
    child.join(120)
    return child.exitcode


def _prepare_and_train(folder: Path, prepare: Callable[[], None], flags: tuple[str, ...]) -> None:
    prepare()
    _train(folder, flags)


def in_processes(count: int, folder: Path, function: Callable, *args) -> list:
    """What ``function(*args)`` gives in each of ``count`` processes of torch.distributed."""
    children = [
        FORKS.Process(target=_connect_and_call, args=(rank, count, folder, function, args))
        for rank in range(count)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    return [torch.load(folder / f"{rank}.pth", weights_only=False) for rank in range(count)]


def _connect_and_call(rank: int, count: int, folder: Path, function: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=count
    )
    torch.save(function(*args), folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()


def kill_this_process() -> None:
    """As a scheduler, or the system out of memory, does."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_processes(count: int, *command: str, **environment: str) -> subprocess.CompletedProcess:
    """Run ``python COMMAND`` in ``count`` processes of torchrun, on CPUs."""
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [*launcher, f"--nproc_per_node={count}", *command]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=600, check=False
    )


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """State dict of a checkpoint."""
    return torch.load(path, weights_only=True)["params"]
