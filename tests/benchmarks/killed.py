"""Kills training at random moments, resumes it, and compares it with an undisturbed run.

    python tests/benchmarks/killed.py --out DIR [--kills 20] [--recipe paper] [--processes 1]

The demo's EDSR x4 on the photographs that come with scikit-image, on a CPU. Runs are killed with
SIGKILL. Moments are spread over the iterations of the run: calibration, every phase of fine-tuning,
saving and validation. Prints a table; exits with 1 if any final checkpoint differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from tabulate import tabulate

ROOT = Path(__file__).parents[2]
NAME = "run"
# Two epochs of each of the phases of the recipe paper.
ITERATIONS = 42
WEIGHTS = ROOT / "adabm_basicsr" / "demo" / "EDSR_Mx4_f64b16_BSDS400_fp16.pth"
EDSR = {
    "type": "EDSR",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 64,
    "num_block": 16,
    "upscale": 4,
}


def options(data: Path, recipe: str, processes: int) -> dict:
    """An option file whose run saves and validates several times in each phase."""
    return {
        "name": NAME,
        "model_type": "AdaBMModel",
        "scale": 4,
        "num_gpu": 0,
        "manual_seed": 0,
        "datasets": {
            "train": {
                "name": "Photographs",
                "type": "CalibrationDataset",
                "dataroot_lq": str(data / "calibration" / "LRbicx4"),
                "lq_size": 16,
                "dataset_enlarge_ratio": 2,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 2 // processes,
            },
            "val": {
                "name": "Val",
                "type": "SingleImageDataset",
                "dataroot_lq": str(data / "small"),
            },
        },
        "network_g": {
            "type": "AdaBMNetwork",
            "network": EDSR,
            "recipe": recipe,
            "fully_quantized": True,
        },
        "path": {"pretrain_network_g": str(WEIGHTS)},
        "train": {"total_iter": ITERATIONS},
        "val": {"val_freq": 9, "save_img": True},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 4, "use_tb_logger": False},
    }


def make_data(data: Path) -> None:
    """Calibration images, and two small ones for validation."""
    from adabm_basicsr.data.images import read_image, write_image
    from adabm_basicsr.demo.photographs import make_datasets

    make_datasets(data)
    for path in (data / "validation" / "LRbicx4").iterdir():
        write_image(read_image(path)[:24, :24], data / "small" / path.name)


def start(folder: Path, processes: int) -> subprocess.Popen:
    """`adabm-basicsr train --auto_resume` in a folder."""
    command = [sys.executable, "-W", "ignore"]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}"]
    command += ["-m", "adabm_basicsr.train", "-opt", "../options.yml", "--auto_resume"]
    if processes > 1:
        command += ["--launcher", "pytorch"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


def finish(run: subprocess.Popen, folder: Path) -> dict[str, torch.Tensor]:
    """Wait for the end of a run, and return the state of its final checkpoint."""
    if run.wait() != 0:
        raise RuntimeError((folder / "output.txt").read_text()[-3000:])
    checkpoint = folder / "experiments" / NAME / "models" / "net_g_latest.pth"
    return torch.load(checkpoint, weights_only=True)["params"]


def log_of(folder: Path) -> str:
    """What the latest run in a folder has logged so far."""
    logs = list((folder / "experiments" / NAME).glob("*.log"))
    if not logs:
        return ""
    return max(logs, key=lambda path: path.stat().st_mtime).read_text()


def undisturbed(folder: Path, processes: int) -> tuple[dict[str, torch.Tensor], float]:
    """Final state of a run that nothing disturbs, and seconds from one iteration to the next."""
    run = start(folder, processes)
    wait_for("iter: +1,", folder, run)
    begun = time.monotonic()
    wait_for(f"iter: +{ITERATIONS},", folder, run)
    pace = (time.monotonic() - begun) / (ITERATIONS - 1)
    return finish(run, folder), pace


def wait_for(pattern: str, folder: Path, run: subprocess.Popen) -> None:
    """Return when the log of a run holds a pattern, or the run has ended."""
    while not re.search(pattern, log_of(folder)) and run.poll() is None:
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Processes that a process started, on Linux; none of one that has ended."""
    children = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in path.read_text().split()]
    return children


def kill(folder: Path, processes: int, iteration: int, seconds: float) -> str:
    """Start a run, and kill it some seconds after an iteration; returns what it was doing.

    Iteration 0 is the start of calibration.
    """
    run = start(folder, processes)
    begun = "Loading"
    if iteration:
        begun = rf"iter: +{iteration},"
    wait_for(begun, folder, run)
    time.sleep(seconds)
    # torchrun's processes don't end with it.
    for pid in [run.pid, *children_of(run.pid)]:
        os.kill(pid, signal.SIGKILL)
    run.wait()
    log = log_of(folder)
    if "End of training" in log:
        return "after the last iteration"
    phases = re.findall(r"Fine-tuning (.+) from iteration", log)
    if not phases:
        return "calibration"
    return phases[-1]


def resume(folder: Path, processes: int) -> tuple[dict[str, torch.Tensor], str]:
    """Final state of the resumed run, and the iteration that it went on from."""
    state = finish(start(folder, processes), folder)
    resumed = re.findall(r"Resuming training from epoch: \d+, iter: (\d+)", log_of(folder))
    if not resumed:
        return state, "the beginning"
    return state, resumed[0]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal, to the bit."""
    if first.keys() != second.keys():
        return False
    return all(torch.equal(first[key], second[key]) for key in first)


def kill_and_resume(
    folder: Path, args: argparse.Namespace, iteration: int, seconds: float, expected: dict
) -> dict:
    """A row of the table: when the run was killed, and whether its final state is as expected."""
    killed_in = kill(folder, args.processes, iteration, seconds)
    found, resumed_from = resume(folder, args.processes)
    return {
        "killed after": f"{iteration}, {seconds:.2f} s",
        "in": killed_in,
        "resumed from": resumed_from,
        "same checkpoint": same(expected, found),
    }


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args()


def main() -> None:
    """Kill, resume, compare and print; writes ``killed.json``."""
    args = read_arguments()
    args.out.mkdir(parents=True)
    data = (args.out / "data").resolve()
    make_data(data)
    opt = options(data, args.recipe, args.processes)
    (args.out / "options.yml").write_text(yaml.safe_dump(opt, sort_keys=False))
    expected, pace = undisturbed(args.out / "undisturbed", args.processes)

    chance = random.Random(args.seed)
    rows = []
    for index in range(args.kills):
        iteration = int(ITERATIONS * (index + chance.random()) / args.kills)
        seconds = pace * chance.random()
        folder = args.out / f"killed_{index}"
        rows.append(kill_and_resume(folder, args, iteration, seconds, expected))
        (args.out / "killed.json").write_text(json.dumps(rows, indent=2))
    print(tabulate(rows, headers="keys", tablefmt="github"))
    sys.exit(not all(row["same checkpoint"] for row in rows))


if __name__ == "__main__":
    main()
