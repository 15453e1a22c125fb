"""Commands that SIGTERM ends, as schedulers do, tidy up after themselves."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import write_images
from faults import FORKS, start_training

from adabm_basicsr import save_checkpoint
from adabm_basicsr.commands.main import main
from adabm_basicsr.files import TEMPORARY_PREFIX


def run_and_terminate(write, argv):
    """Send SIGTERM to this process when file number ``write`` is about to get its name."""
    original, renamed = Path.replace, []

    def replace(path, target):
        renamed.append(target)
        if len(renamed) == write:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(path, target)

    Path.replace = replace
    torch.set_num_threads(1)
    with Path("output.txt").open("w") as output, contextlib.redirect_stderr(output):
        main(argv)


def terminate(write, *argv):
    """Run a command in a child that SIGTERM ends at one of its writes."""
    child = FORKS.Process(target=run_and_terminate, args=(write, argv))
    child.start()
    child.join(120)
    output = Path("output.txt").read_text()
    Path("output.txt").unlink()
    assert child.exitcode == 143, output
    assert output.splitlines()[-1].startswith("adabm-basicsr: terminated")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "in", [(24, 24)] * 3)
    return tmp_path


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("out", ["lr", "lr.lmdb"])
def test_prepare_leaves_nothing_and_can_be_run_again(folder, out):
    argv = ["prepare", "--hr", "in", "--scale", "2", "--out", out, "--mod", "mod"]
    terminate(4, *argv)
    assert names(folder) == ["in"]
    main(argv)
    assert names("mod") == names("in")


def test_upscale_leaves_whole_images_and_goes_on(folder, edsr, capsys):
    save_checkpoint(edsr, "net.pth")
    argv = ["upscale", "-m", "net.pth", "-i", "in", "-o", "out", "--device", "cpu"]
    terminate(2, *argv)
    assert names("out") == ["img_000.png"]
    main(argv)
    assert names("out") == names("in")
    assert "images upscaled: 2," in capsys.readouterr().out


@pytest.mark.parametrize("name", ["net.safetensors", "net.onnx"])
def test_export_leaves_nothing(folder, edsr, name):
    save_checkpoint(edsr, "net.pth")
    argv = ["export", "-m", "net.pth", "-o", name]
    terminate(1, *argv)
    assert names(folder) == ["in", "net.pth"]
    main(argv)
    assert names(folder) == sorted(["in", "net.pth", name])


def test_a_run_says_how_to_go_on(workspace):
    options = workspace.train_options(train__total_iter=3000, logger__save_checkpoint_freq=1)
    workspace.write(options)
    run = start_training(workspace.root)
    states = Path("experiments/tiny/training_states")
    while not list(states.glob("[0-9]*.state")) and run.is_alive():
        time.sleep(0.1)
    run.terminate()
    run.join()
    assert run.exitcode == 143
    last = Path("output.txt").read_text().splitlines()[-1]
    assert last.startswith("adabm-basicsr: terminated; --auto_resume goes on from experiments/")
    assert not list(Path("experiments").rglob(f"{TEMPORARY_PREFIX}*"))
