"""Runs that are killed, or whose disk is full.

What is there loads, and what is resumed ends as if undisturbed.
"""

import functools
import json
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_runs import of_recurrent
from faults import kill_this_process, read_state, train_to_death

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import TEMPORARY_PREFIX
from adabm_basicsr.quantization.finetuning.finetune import Finetuner
from adabm_basicsr.runs.training_state import newest_state
from adabm_basicsr.runs.training_state import read_state as read_training_state

LATEST = "models/net_g_latest.pth"
MODELS = Path("experiments/tiny/models")
STATES = Path("experiments/tiny/training_states")
KILLED, FAILED = -9, 2


def same(experiment, other):
    first, second = (
        read_state(f"experiments/{experiment}/{LATEST}"),
        read_state(f"experiments/{other}/{LATEST}"),
    )
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def at_write(count, fault):
    """Call ``fault(path, content)`` instead of write number ``count`` of checkpoints and states.

    A run of 12 iterations that saves every 6 writes network and state of iterations 0, 6 and 12,
    and the last network.
    """
    original, writes = Path.write_bytes, []

    def write_bytes(path, content):
        writes.append(path)
        return fault(path, content) if len(writes) == count else original(path, content)

    Path.write_bytes = write_bytes


def die_half_way(path, content):
    with path.open("wb") as file:
        file.write(bytes(content)[: len(content) // 2])
    kill_this_process()


def write_and_die(path, content):
    with path.open("wb") as file:
        file.write(content)
    kill_this_process()


def hit_the_limit(path, content):
    """The system refuses to let the file grow beyond a thousand bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with path.open("wb") as file:
            file.write(content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_the_disk(path, content):
    """Take all the room that is left, then go on writing."""
    with Path("experiments/ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
    with path.open("wb") as file:
        file.write(content)


@pytest.fixture(autouse=True)
def one_thread():
    """As the runs that die: on some processors the last digits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def options(workspace):
    """Write the option file of a run; its recipe may be chosen."""

    def write(recipe="paper", **changes):
        changes = {"network_g__recipe": recipe, "train__total_iter": 12, **changes}
        return workspace.write(workspace.train_options(**changes))

    return write


@pytest.mark.parametrize(
    ("recipe", "write", "fault", "resumed_from"),
    [
        ("best", 1, die_half_way, None),  # calibrated, but nothing is saved: it calibrates again
        (
            "best",
            4,
            die_half_way,
            0,
        ),  # the state of iteration 6 is half there; its network is whole
        ("paper", 5, write_and_die, 6),  # the network of iteration 12 hasn't got its name yet
    ],
)
def test_killed_while_saving(workspace, options, recipe, write, fault, resumed_from):
    options(recipe)
    assert train_to_death(workspace.root, functools.partial(at_write, write, fault)) == KILLED
    assert len(list(Path("experiments").rglob(f"{TEMPORARY_PREFIX}*"))) == 1
    for path in MODELS.glob("net_g_*.pth"):
        read_state(path)
    for path in STATES.glob("[0-9]*.state"):
        read_training_state(path)
    workspace.train("--auto_resume", network_g__recipe=recipe)
    log = max(
        Path("experiments/tiny").glob("*.log"), key=lambda path: path.stat().st_mtime
    ).read_text()
    assert ("Calibrated" in log) is (resumed_from is None)
    assert f"iter: {resumed_from or 0}" in log
    assert not list(Path("experiments/tiny").rglob(f"{TEMPORARY_PREFIX}*"))
    workspace.train(name="whole", network_g__recipe=recipe)
    assert same("tiny", "whole")


@pytest.mark.slow
def test_a_killed_run_on_clips_is_resumed(workspace):
    """Of a recurrent network, killed before the network of its last iteration has its name."""
    changes = {**of_recurrent(workspace, "best"), "train__total_iter": 4}
    changes["logger__save_checkpoint_freq"] = 2
    workspace.write(workspace.train_options(**changes))
    killing = functools.partial(at_write, 5, write_and_die)
    assert train_to_death(workspace.root, killing) == KILLED
    workspace.train("--auto_resume", **changes)
    phases = json.loads(Path("experiments/tiny/run.json").read_text())["phases"]
    assert any("iterations 3 to 4" in phase["name"] for phase in phases)
    workspace.train(name="whole", **changes)
    assert same("tiny", "whole")


@pytest.mark.parametrize(("write", "kept"), [(3, "net_g_0.pth"), (4, "net_g_6.pth")])
def test_a_write_error_stops_the_run_and_leaves_what_was_there(workspace, options, write, kept):
    options()
    assert (
        train_to_death(workspace.root, functools.partial(at_write, write, hit_the_limit)) == FAILED
    )
    output = Path("output.txt").read_text()
    refused = {3: "net_g_6.pth", 4: "6.state"}[write]
    assert f"{refused}: [Errno 27] File too large" in output
    assert "Traceback" not in output
    assert not list(Path("experiments").rglob(f"{TEMPORARY_PREFIX}*"))
    read_state(MODELS / kept)
    workspace.train("--auto_resume")
    workspace.train(name="whole")
    assert same("tiny", "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if (
        sys.platform != "linux"
        or subprocess.run(command, check=False, capture_output=True).returncode
    ):
        pytest.skip("mounting isn't allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_stops_the_run_and_leaves_what_was_there(workspace, options, small_disk):
    options()
    Path("experiments").symlink_to(small_disk)
    assert train_to_death(workspace.root, functools.partial(at_write, 3, fill_the_disk)) == FAILED
    output = Path("output.txt").read_text()
    assert "net_g_6.pth: [Errno 28] No space left on device" in output
    assert "Traceback" not in output
    read_state(MODELS / "net_g_0.pth")
    (small_disk / "ballast").unlink()
    workspace.train("--auto_resume")
    workspace.train(name="whole")
    assert same("tiny", "whole")


def keep_only(experiment, iteration):
    """What is there after a kill just after that iteration was saved."""
    kept = (str(iteration), f"net_g_{iteration}")
    for folder in ("models", "training_states"):
        for path in Path(f"experiments/{experiment}/{folder}").iterdir():
            if path.stem not in kept:
                path.unlink()


def test_a_state_without_its_network_is_not_resumed_from(workspace):
    workspace.train()
    (MODELS / "net_g_12.pth").unlink()
    assert newest_state(STATES, MODELS, ["g"]).name == "6.state"
    assert newest_state(STATES, MODELS, ["g", "d"]) is None


def test_resumed_with_the_seed_that_was_drawn(workspace):
    workspace.train(name="whole", manual_seed=None)
    shutil.copytree("experiments/whole", "experiments/cut")
    keep_only("cut", 6)
    workspace.train("--auto_resume", name="cut", manual_seed=None)
    assert same("cut", "whole")
    phases = json.loads(Path("experiments/cut/run.json").read_text())["phases"]
    iterations = [
        phase["name"].partition("iterations ")[2]
        for phase in phases
        if "Fine-tuning" in phase["name"]
    ]
    assert iterations == [
        "1 to 4",
        "7 to 8",
        "9 to 12",
    ]  # what was done after the sixth is noted as it was done again


@pytest.mark.parametrize("saved_at", [4, 6])  # where the loss is measured, and between
def test_the_best_state_is_that_of_an_uninterrupted_run(workspace, saved_at):
    # Rates that grow harmful as they rise: an early state is the best. With these ingredients it is
    # one that fine-tuning made, not the calibrated one.
    rates = {"activation_range": 0.0025, "weight_correction": 0.015, "bias": 0.01}
    options = {
        "network_g__recipe": "fast",
        "network_g__ingredients": {"image_bits": [-1, 0]},
        "logger__save_checkpoint_freq": saved_at,
        "train__finetune": {"learning_rates": rates},
    }
    workspace.train(name="whole", **options)
    phases = json.loads(Path("experiments/whole/run.json").read_text())["phases"]
    assert phases[-1]["name"].startswith("Back to the best state, of iteration 4")
    shutil.copytree("experiments/whole", "experiments/cut")
    keep_only("cut", saved_at)
    workspace.train("--auto_resume", name="cut", **options)
    assert same("cut", "whole")


@pytest.mark.parametrize(
    "saved_at", [3, 4]
)  # within an epoch, and at its end, where loaders draw anew
def test_random_states_are_taken_up(workspace, monkeypatch, saved_at):
    original = Finetuner.step

    def with_noise(self, images, *args):
        noise = torch.rand(()) + np.random.rand() + random.random()
        return original(self, images * (0.9 + noise / 30), *args)

    monkeypatch.setattr(Finetuner, "step", with_noise)
    workspace.train(name="whole", logger__save_checkpoint_freq=saved_at)
    shutil.copytree("experiments/whole", "experiments/cut")
    keep_only("cut", saved_at)
    workspace.train("--auto_resume", name="cut", logger__save_checkpoint_freq=saved_at)
    assert same("cut", "whole")


def test_resumed_from_another_folder(workspace, monkeypatch):
    workspace.train(name="whole")
    state = Path("experiments/whole/training_states/6.state").resolve()
    other = workspace.root / "other"
    other.mkdir()
    for name in ("lr", "tiny.pth"):
        (other / name).symlink_to(workspace.root / name)
    monkeypatch.chdir(other)
    workspace.train(path={"pretrain_network_g": "tiny.pth", "resume_state": str(state)})
    found = read_state(f"experiments/tiny/{LATEST}")
    expected = read_state(workspace.root / "experiments/whole" / LATEST)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_own_script_resumes_from_any_folder(workspace, monkeypatch):
    """Where `train.py` sets the root folder itself, BasicSR looked below the working directory."""
    from basicsr.train import train_pipeline

    monkeypatch.setattr(
        sys, "argv", ["train.py", "-opt", str(workspace.write(workspace.train_options()))]
    )
    root = workspace.root / "project"
    train_pipeline(str(root))
    for name in ("12.state", "6.state"):
        (root / "experiments/tiny/training_states" / name).unlink()
    elsewhere = workspace.root / "elsewhere"
    elsewhere.mkdir()
    for name in ("lr", "tiny.pth"):
        (elsewhere / name).symlink_to(workspace.root / name)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--auto_resume"])
    before = read_state(root / "experiments/tiny" / LATEST)
    train_pipeline(str(root))
    after = read_state(root / "experiments/tiny" / LATEST)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not Path("experiments").exists()


def test_resuming_with_other_options(workspace, capsys):
    workspace.train(name="tiny", train__total_iter=6)
    with pytest.raises(SystemExit):
        workspace.train("--auto_resume", datasets__train__batch_size_per_gpu=4)
    message = (
        "cannot resume: iterations per epoch were 4 when the run was saved, and are 2 now; use the "
        "same recipe"
    )
    assert message in capsys.readouterr().err


def test_a_network_is_no_training_state(workspace, capsys):
    workspace.train()
    with pytest.raises(SystemExit):
        workspace.train(name="again", path__resume_state=str(MODELS / "net_g_6.pth"))
    assert (
        "net_g_6.pth is no training state: epoch, iter, optimizers, schedulers missing"
        in capsys.readouterr().err
    )
    with pytest.raises(AdaBMError, match=r"gone\.state does not exist"):
        read_training_state("gone.state")
