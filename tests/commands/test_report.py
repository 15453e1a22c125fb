"""What ``report``, ``compare`` and ``inspect`` reject, in one line."""

import shutil
from pathlib import Path

import pytest

from adabm_basicsr.commands.main import main

RUN = Path("results/tiny_test")

MISTAKES = {
    "no run": (["report", "val"], "val holds no run.json: name a folder of one run"),
    "no folder": (["report", "gone"], "gone holds no run.json"),
    "folder of runs": (["report", "experiments"], "test wrote, such as experiments/tiny"),
    "near folder": (["report", "experiments/tinny"], "did you mean 'experiments/tiny'?"),
    "nothing to compare": (["compare", "val"], "val neither is the folder of a run nor holds any"),
    "no model": (["inspect", "gone.pth"], "gone.pth does not exist"),
    "folder of models": (
        ["inspect", "experiments/tiny/models"],
        "tiny/models is a folder: name a file",
    ),
}


@pytest.mark.parametrize(("argv", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(argv, message, at_run, capsys):
    with pytest.raises(SystemExit):
        main(argv)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written_to_is_named(at_run, capsys):
    run = Path("results/full")
    shutil.copytree(RUN, run, ignore=shutil.ignore_patterns("report"))
    (run / "report").write_text("in the way")
    with pytest.raises(SystemExit):
        main(["report", str(run)])
    shutil.rmtree(run)
    assert "cannot write to results/full/report: File exists" in capsys.readouterr().err


def test_a_mistake_leaves_no_empty_log(at_run, capsys):
    run = Path("results/foreign")
    shutil.copytree(RUN, run, ignore=shutil.ignore_patterns("report", "pictures"))
    record = run / "run.json"
    record.write_text(record.read_text().replace(".pth", "_gone.pth"))
    with pytest.raises(SystemExit):
        main(["report", str(run)])
    left = list((run / "report").iterdir())
    shutil.rmtree(run)
    assert "_gone.pth does not exist" in capsys.readouterr().err
    assert left == []
