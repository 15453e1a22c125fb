"""BasicSR's pipelines in several processes, on CPUs."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from clip_runs import of_recurrent, validation
from faults import FORKS, ROOT, read_state, run_processes

from adabm_basicsr.bridge.processes import init_dist
from adabm_basicsr.quantization.distributed import end_processes, gather_objects


def with_validation(workspace, **changes):
    """Options of a short run that validates once and writes what it makes."""
    options = workspace.train_options(
        train__total_iter=6, logger__save_checkpoint_freq=100, **changes
    )
    options["datasets"]["val"] = dict(workspace.test_options()["datasets"]["test"])
    return {**options, "val": {**workspace.test_options()["val"], "save_img": True}}


def test_two_processes_train_and_validate_as_one(workspace):
    workspace.write(with_validation(workspace, datasets__train__batch_size_per_gpu=1))
    done = run_processes(
        2, "-m", "adabm_basicsr.train", "-opt", "options.yml", "--launcher", "pytorch"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = {
        "datasets": with_validation(workspace)["datasets"],
        "val": with_validation(workspace)["val"],
    }
    workspace.train(name="one", train__total_iter=6, **one)
    first, second = (
        read_state(f"experiments/{name}/models/net_g_0.pth") for name in ("tiny", "one")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    found, expected = (
        json.loads(Path(f"experiments/{name}/metrics.json").read_text()) for name in ("tiny", "one")
    )
    assert found["Val"] == pytest.approx(expected["Val"], abs=0.01)
    assert len(list(Path("experiments/tiny").glob("*.log"))) == 1
    pictures = sorted(path.name for path in Path("experiments/tiny/visualization").rglob("*.png"))
    assert pictures == sorted(
        path.name for path in Path("experiments/one/visualization").rglob("*.png")
    )
    assert pictures == ["img_000_6.png", "img_001_6.png"]  # validated once, at the end


@pytest.mark.slow
def test_two_processes_take_clips_as_one(workspace):
    changes = {**of_recurrent(workspace, "fast"), "train__total_iter": 2}
    changes["logger__save_checkpoint_freq"] = 100
    val = {"val": {**workspace.test_options()["val"], "save_img": False}}
    changes["datasets__val"] = validation()
    options = workspace.train_options(datasets__train__batch_size_per_gpu=1, **changes)
    workspace.write({**options, **val})
    command = ("-m", "adabm_basicsr.train", "-opt", "options.yml", "--launcher", "pytorch")
    # Where the network is that the options import.
    done = run_processes(2, *command, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    assert done.returncode == 0, done.stderr[-3000:]
    workspace.train(name="one", **changes, **val)
    first, second = (
        read_state(f"experiments/{name}/models/net_g_0.pth") for name in ("tiny", "one")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    found, expected = (
        json.loads(Path(f"experiments/{name}/run.json").read_text())["sets"]["Film"]
        for name in ("tiny", "one")
    )
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=0.01)
    assert found["by_frame"]["psnr"] == pytest.approx(expected["by_frame"]["psnr"], abs=0.01)


def meet_by_slurm(rank, environment, folder):
    os.environ.update(environment, SLURM_PROCID=str(rank))
    init_dist("slurm", on_gpu=False)
    (folder / f"{rank}.json").write_text(json.dumps(gather_objects(rank)))
    end_processes()


def test_slurm_starts_processes_without_gpus(tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho localhost\n")
    scontrol.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MASTER_PORT": port}
    environment |= {"SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost"}
    children = [
        FORKS.Process(target=meet_by_slurm, args=(rank, environment, tmp_path)) for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [
        [0, 1],
        [0, 1],
    ]


@pytest.mark.parametrize(
    ("launcher", "missing", "starter"),
    [("pytorch", "RANK", "torchrun"), ("slurm", "SLURM_PROCID", "srun")],
)
def test_launcher_that_was_not_used(workspace, capsys, launcher, missing, starter):
    with pytest.raises(SystemExit):
        workspace.train("--launcher", launcher)
    message = (
        f"--launcher {launcher}: {missing} is not set in the environment; start with {starter}"
    )
    assert message in capsys.readouterr().err
