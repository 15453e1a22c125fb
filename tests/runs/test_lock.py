"""Two runs of one name don't mix: the second is refused, until the first has ended."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from faults import FORKS, in_processes, start_training

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.distributed import rank_and_size
from adabm_basicsr.runs.lock import leave_folder, take_folder

PROCESS = Path("experiments/.tiny.process")
LONG = {"train__total_iter": 5000, "logger__save_checkpoint_freq": 5000}


@pytest.fixture
def run(workspace):
    """A run at work, which has calibrated."""
    workspace.write(workspace.train_options(**LONG, datasets__train__num_worker_per_gpu=2))
    child = start_training(workspace.root)
    while not Path("experiments/tiny/models/net_g_0.pth").exists():
        assert child.is_alive(), Path("output.txt").read_text()
        time.sleep(0.05)
    yield child
    child.kill()
    child.join()


def refused(capsys, train, *flags, **changes):
    with pytest.raises(SystemExit) as stopped:
        train(*flags, **changes)
    assert stopped.value.code == 2
    # BasicSR logs what it builds where nobody has set up its log.
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if " INFO: " not in line]
    return error


def test_a_second_run_is_refused_while_the_first_is_at_work(run, workspace, capsys):
    for flags in ((), ("--auto_resume",)):
        error = refused(capsys, workspace.train, *flags)
        assert error.startswith(f"adabm-basicsr: error: name: tiny: process {run.pid} on ")
        assert "train -opt options.yml) is writing to experiments/tiny; wait for it" in error
    assert [path.name for path in Path("experiments").glob("tiny*")] == ["tiny"]
    run.terminate()
    run.join()
    assert not PROCESS.exists()
    workspace.train("--auto_resume", train__total_iter=2)
    assert "taken over" not in capsys.readouterr().err


def test_a_killed_run_is_taken_over(run, workspace, capsys):
    run.kill()
    run.join()
    workspace.train("--auto_resume", train__total_iter=6)
    line = f"experiments/tiny is taken over from process {run.pid} on "
    assert line in capsys.readouterr().err
    logs = [path.read_text() for path in Path("experiments/tiny").glob("*.log")]
    assert len([log for log in logs if line in log]) == 1
    assert not PROCESS.exists()


def test_a_run_that_fails_leaves_its_folder(workspace, monkeypatch):
    def fail(*args):
        raise RuntimeError("as a bug does")

    with monkeypatch.context() as patch:
        patch.setattr("adabm_basicsr.models.adabm_model.AdaBMModel.feed_data", fail)
        with pytest.raises(RuntimeError):
            workspace.train()
    assert not PROCESS.exists()
    workspace.train(train__total_iter=2)


def take_and_wait(opt, taken, end):
    take_folder(opt)
    taken.set()
    end.wait(60)


@pytest.fixture
def other(workspace):
    """A process that has taken the folder of the workspace's test."""
    taken, end = FORKS.Event(), FORKS.Event()
    child = FORKS.Process(target=take_and_wait, args=(options_of(workspace.root), taken, end))
    child.start()
    taken.wait(60)
    yield child
    end.set()
    child.join()


def options_of(root, rank=0):
    return {"rank": rank, "path": {"log": str(root / "results/tiny_test")}, "command": "a\nb"}


def test_results_of_two_tests_dont_mix(reported, other, workspace, capsys):
    shutil.copytree(reported / "experiments", "experiments")
    error = refused(capsys, workspace.test)
    assert f"name: tiny_test: process {other.pid} on " in error
    assert ": a\\nb) is writing to results/tiny_test" in error


def take_in_processes(root):
    try:
        take_folder(options_of(root, rank_and_size()[0]))
    except AdaBMError as error:
        return str(error)
    return sorted(path.name for path in (root / "results").iterdir())


def test_the_first_of_several_processes_takes_it_for_all(workspace, tmp_path):
    taken = [".tiny_test.lock", ".tiny_test.process"]
    assert in_processes(2, tmp_path, take_in_processes, workspace.root)[1] == taken


def test_several_processes_are_refused_together(other, workspace, tmp_path):
    first, second = in_processes(2, tmp_path, take_in_processes, workspace.root)
    assert f"process {other.pid} on " in first
    assert second == first


def test_basicsrs_own_entry_points_take_the_folder_too(workspace):
    from basicsr.train import train_pipeline

    workspace.write(workspace.train_options(train__total_iter=2))
    argv = sys.argv
    sys.argv = ["train.py", "-opt", "options.yml"]
    try:
        train_pipeline(str(workspace.root))
    finally:
        sys.argv = argv
    assert json.loads(PROCESS.read_text())["pid"] == os.getpid()
    leave_folder({"path": {"log": str(workspace.root / "experiments/tiny")}})
    assert not PROCESS.exists()


def test_a_process_that_cannot_be_named(other, workspace, capsys):
    Path("results/.tiny_test.process").write_text("cut o")
    with pytest.raises(AdaBMError, match="name: tiny_test: another process is writing to"):
        take_folder(options_of(workspace.root))
